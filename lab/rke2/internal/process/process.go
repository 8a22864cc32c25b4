// Package process runs the Kubernetes components as children.
//
// It promises that a child never outlives its parent (the kernel kills it when the parent dies, however that happens),
// that a crashed child comes back with a growing pause, and that its output lands in one bounded file per component.
package process

import (
	"context"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"

	"infraflows/lab/rke2/internal/logging"
)

const (
	firstPause = 250 * time.Millisecond
	lastPause  = 5 * time.Second
	// A child that ran this long was healthy: its next crash starts with the first pause again.
	healthyRun = 30 * time.Second
)

// Child describes one component.
type Child struct {
	Name        string
	Path        string
	Arguments   []string
	Environment []string
	LogFile     string
	StopTimeout time.Duration
	// OnExit sees each unwanted end with the last lines of output; an error from it ends the supervision.
	OnExit func(lastLines []string) error
}

// Supervised is a running child with its restarts.
type Supervised struct {
	child  Child
	log    *logFile
	cancel context.CancelFunc
	done   chan struct{}
	failed chan error

	mutex   sync.Mutex
	command *exec.Cmd
}

// spawner starts children from one thread that never ends: the kernel's parent-death signal is bound to the thread,
// not to the process, that forked.
var spawner = func() chan func() {
	work := make(chan func())
	go func() {
		runtime.LockOSThread()
		for task := range work {
			task()
		}
	}()
	return work
}()

func start(command *exec.Cmd) error {
	result := make(chan error, 1)
	spawner <- func() { result <- command.Start() }
	return <-result
}

// Supervise starts the child and keeps it running until Stop.
func Supervise(child Child) (*Supervised, error) {
	log, err := openLog(child.LogFile)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &Supervised{child: child, log: log, cancel: cancel, done: make(chan struct{}), failed: make(chan error, 1)}
	go s.run(ctx)
	return s, nil
}

// Failed delivers the error that ended the supervision.
func (s *Supervised) Failed() <-chan error { return s.failed }

func (s *Supervised) run(ctx context.Context) {
	defer close(s.done)
	defer s.log.Close()
	pause := firstPause
	for ctx.Err() == nil {
		begin := time.Now()
		err := s.runOnce(ctx)
		if ctx.Err() != nil {
			return
		}
		lastLine := ""
		if lines := s.log.LastLines(); len(lines) > 0 {
			lastLine = lines[len(lines)-1]
		}
		logging.Error("%s exited: %v (%s). Restarting it in %s; log: %s", s.child.Name, err, lastLine, pause, s.child.LogFile)
		if s.child.OnExit != nil {
			if err = s.child.OnExit(s.log.LastLines()); err != nil {
				s.failed <- err
				return
			}
		}
		if time.Since(begin) > healthyRun {
			pause = firstPause
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(pause*2, lastPause)
	}
}

func (s *Supervised) runOnce(ctx context.Context) error {
	command := exec.Command(s.child.Path, s.child.Arguments...)
	command.Env = append(baseEnvironment(), s.child.Environment...)
	command.Stdout, command.Stderr = s.log, s.log
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	s.mutex.Lock()
	if ctx.Err() != nil {
		s.mutex.Unlock()
		return ctx.Err()
	}
	err := start(command)
	if err == nil {
		s.command = command
	}
	s.mutex.Unlock()
	if err != nil {
		return err
	}
	err = command.Wait()
	s.mutex.Lock()
	s.command = nil
	s.mutex.Unlock()
	return err
}

// Restart ends the running child; the supervision starts it again at once with what it finds on disk. It returns when
// the old process is gone, so that nothing is asked of it any more.
func (s *Supervised) Restart() {
	s.mutex.Lock()
	old := s.command
	s.mutex.Unlock()
	if old == nil {
		return
	}
	isGone := func() bool {
		s.mutex.Lock()
		defer s.mutex.Unlock()
		return s.command != old
	}
	s.signal(syscall.SIGTERM)
	for deadline := time.Now().Add(s.stopTimeout()); time.Now().Before(deadline) && !isGone(); {
		time.Sleep(50 * time.Millisecond)
	}
	for !isGone() {
		_ = old.Process.Kill()
		time.Sleep(50 * time.Millisecond)
	}
}

func (s *Supervised) stopTimeout() time.Duration {
	if s.child.StopTimeout == 0 {
		return 5 * time.Second
	}
	return s.child.StopTimeout
}

// Stop ends the child, gracefully first.
func (s *Supervised) Stop() {
	begin := time.Now()
	defer func() { logging.Info("Stopped %s in %s", s.child.Name, time.Since(begin).Round(time.Millisecond)) }()
	s.cancel()
	s.signal(syscall.SIGTERM)
	timeout := s.stopTimeout()
	select {
	case <-s.done:
	case <-time.After(timeout):
		logging.Warning("%s did not stop within %s: killing it", s.child.Name, timeout)
		s.signal(syscall.SIGKILL)
		<-s.done
	}
}

func (s *Supervised) signal(number syscall.Signal) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if s.command != nil {
		_ = s.command.Process.Signal(number)
	}
}

// baseEnvironment passes no token on: RKE2_TOKEN and its kin stay with the parent.
func baseEnvironment() []string {
	var result []string
	for _, name := range []string{"PATH", "HOME", "TZ", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY"} {
		if value, isSet := os.LookupEnv(name); isSet {
			result = append(result, name+"="+value)
		}
	}
	return result
}
