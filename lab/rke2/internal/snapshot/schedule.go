package snapshot

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Schedule is a cron line of five fields.
type Schedule struct {
	fields          [5]map[int]bool
	anyDay, anyWeek bool
}

var bounds = [5][2]int{{0, 59}, {0, 23}, {1, 31}, {1, 12}, {0, 7}}

// ParseSchedule reads minute, hour, day, month and weekday; *, lists, ranges and steps.
func ParseSchedule(text string) (*Schedule, error) {
	parts := strings.Fields(text)
	if len(parts) != 5 {
		return nil, fmt.Errorf("schedule %q does not have five fields", text)
	}
	schedule := &Schedule{anyDay: parts[2] == "*", anyWeek: parts[4] == "*"}
	for index, part := range parts {
		values, err := parseField(part, bounds[index][0], bounds[index][1])
		if err != nil {
			return nil, fmt.Errorf("schedule %q: %w", text, err)
		}
		schedule.fields[index] = values
	}
	if schedule.fields[4][7] { // both 0 and 7 are Sunday
		schedule.fields[4][0] = true
	}
	return schedule, nil
}

func parseField(text string, low, high int) (map[int]bool, error) {
	values := map[int]bool{}
	for _, item := range strings.Split(text, ",") {
		span, stepText, hasStep := strings.Cut(item, "/")
		step := 1
		if hasStep {
			var err error
			if step, err = strconv.Atoi(stepText); err != nil || step < 1 {
				return nil, fmt.Errorf("%q is not a step", stepText)
			}
		}
		first, last := low, high
		if span != "*" {
			from, to, isRange := strings.Cut(span, "-")
			var err error
			if first, err = strconv.Atoi(from); err != nil {
				return nil, fmt.Errorf("%q is not a number", from)
			}
			last = first
			if hasStep {
				last = high
			}
			if isRange {
				if last, err = strconv.Atoi(to); err != nil {
					return nil, fmt.Errorf("%q is not a number", to)
				}
			}
		}
		if first < low || last > high || first > last {
			return nil, fmt.Errorf("%q is not within %d-%d", item, low, high)
		}
		for value := first; value <= last; value += step {
			values[value] = true
		}
	}
	return values, nil
}

// Next is the first minute after now that fits; a schedule such as 31 February never does.
func (s *Schedule) Next(now time.Time) (time.Time, bool) {
	next := now.Truncate(time.Minute).Add(time.Minute)
	for end := now.AddDate(5, 0, 0); next.Before(end); {
		switch {
		case !s.fields[3][int(next.Month())] || !s.isDay(next):
			next = time.Date(next.Year(), next.Month(), next.Day()+1, 0, 0, 0, 0, next.Location())
		case !s.fields[1][next.Hour()]:
			next = next.Truncate(time.Hour).Add(time.Hour)
		case !s.fields[0][next.Minute()]:
			next = next.Add(time.Minute)
		default:
			return next, true
		}
	}
	return time.Time{}, false
}

// isDay follows cron: when both days are given, either is enough.
func (s *Schedule) isDay(day time.Time) bool {
	inMonth, inWeek := s.fields[2][day.Day()], s.fields[4][int(day.Weekday())]
	if s.anyDay || s.anyWeek {
		return inMonth && inWeek
	}
	return inMonth || inWeek
}
