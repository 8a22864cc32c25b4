package process

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func wait(t *testing.T, what string, isTrue func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if isTrue() {
			return
		}
	}
	t.Fatalf("it never happened: %s", what)
}

func shell(t *testing.T, script string) Child {
	log := filepath.Join(t.TempDir(), "child.log")
	return Child{Name: "child", Path: "/bin/sh", Arguments: []string{"-c", script}, LogFile: log, StopTimeout: time.Second}
}

func TestACrashedChildComesBackAndItsOutputIsKept(t *testing.T) {
	child := shell(t, "echo started; exit 3")
	supervised, err := Supervise(child)
	if err != nil {
		t.Fatal(err)
	}
	defer supervised.Stop()
	wait(t, "two starts", func() bool {
		content, _ := os.ReadFile(child.LogFile)
		return strings.Count(string(content), "started") >= 2
	})
}

func TestAChildThatIgnoresTheRequestToStopIsKilled(t *testing.T) {
	child := shell(t, "trap '' TERM; echo up; while :; do sleep 0.1; done")
	supervised, err := Supervise(child)
	if err != nil {
		t.Fatal(err)
	}
	wait(t, "the start", func() bool { return len(supervised.log.LastLines()) > 0 })
	begin := time.Now()
	supervised.Stop()
	if elapsed := time.Since(begin); elapsed < time.Second || elapsed > 5*time.Second {
		t.Fatalf("stopped after %s", elapsed)
	}
}

func TestTheTokenInTheEnvironmentIsNotPassedOn(t *testing.T) {
	t.Setenv("RKE2_TOKEN", "planted")
	child := shell(t, "env; exec sleep 60")
	supervised, err := Supervise(child)
	if err != nil {
		t.Fatal(err)
	}
	defer supervised.Stop()
	wait(t, "the environment", func() bool { return len(supervised.log.LastLines()) > 1 })
	if text := strings.Join(supervised.log.LastLines(), "\n"); strings.Contains(text, "planted") {
		t.Fatal("a child sees the token")
	}
}

func TestAnErrorOfTheExitHandlerEndsTheSupervision(t *testing.T) {
	child := shell(t, "echo gone for good; exit 1")
	child.OnExit = func(lines []string) error { return fmt.Errorf("saw %q", lines[len(lines)-1]) }
	supervised, err := Supervise(child)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case err = <-supervised.Failed():
	case <-time.After(5 * time.Second):
		t.Fatal("the supervision goes on")
	}
	if err.Error() != `saw "gone for good"` {
		t.Fatal(err)
	}
	supervised.Stop()
}
