package snapshot

import (
	"testing"
	"time"
)

func TestTheNextSnapshotFollowsTheSchedule(t *testing.T) {
	now := time.Date(2026, 11, 27, 18, 5, 30, 0, time.UTC) // a Friday
	for text, expected := range map[string]string{
		"0 */12 * * *":   "2026-11-28T00:00:00Z",
		"*/5 * * * *":    "2026-11-27T18:10:00Z",
		"30 2 * * 0":     "2026-11-29T02:30:00Z",
		"30 2 * * 7":     "2026-11-29T02:30:00Z",
		"0 0 1 1 *":      "2027-01-01T00:00:00Z",
		"15,45 18 * * 5": "2026-11-27T18:15:00Z",
		"0 3 13 * 1":     "2026-11-30T03:00:00Z",
		"0 9-17/4 * * *": "2026-11-28T09:00:00Z",
	} {
		schedule, err := ParseSchedule(text)
		if err != nil {
			t.Fatal(err)
		}
		if next, found := schedule.Next(now); !found || next.Format(time.RFC3339) != expected {
			t.Errorf("%s: %s, expected %s", text, next.Format(time.RFC3339), expected)
		}
	}
}

func TestSchedulesThatAreNoneAreRefused(t *testing.T) {
	for _, text := range []string{"", "* * * *", "60 * * * *", "* 24 * * *", "*/0 * * * *", "a * * * *", "5-1 * * * *"} {
		if _, err := ParseSchedule(text); err == nil {
			t.Errorf("%q was taken", text)
		}
	}
	never, err := ParseSchedule("0 0 31 2 *")
	if err != nil {
		t.Fatal(err)
	}
	if next, found := never.Next(time.Now()); found {
		t.Errorf("31 February is %s", next)
	}
}
