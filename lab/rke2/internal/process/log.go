package process

import (
	"bytes"
	"os"
	"path/filepath"
	"sync"
)

const (
	maximumLogBytes = 8 << 20
	keptLines       = 40
)

// logFile is a file that is turned over once when it is full, and remembers its last lines.
type logFile struct {
	mutex sync.Mutex
	path  string
	file  *os.File
	size  int64
	lines []string
	rest  []byte
}

func openLog(path string) (*logFile, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	log := &logFile{path: path}
	return log, log.open()
}

func (l *logFile) open() error {
	file, err := os.OpenFile(l.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if status, err := file.Stat(); err == nil {
		l.size = status.Size()
	}
	l.file = file
	return nil
}

// Write never fails the child: a full disk must not stop a component by its log.
func (l *logFile) Write(text []byte) (int, error) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	l.remember(text)
	if l.size > maximumLogBytes {
		l.file.Close()
		_ = os.Rename(l.path, l.path+".1")
		if err := l.open(); err != nil {
			return len(text), nil
		}
	}
	written, _ := l.file.Write(text)
	l.size += int64(written)
	return len(text), nil
}

func (l *logFile) remember(text []byte) {
	l.rest = append(l.rest, text...)
	for {
		line, rest, found := bytes.Cut(l.rest, []byte("\n"))
		if !found {
			break
		}
		l.lines = append(l.lines, string(line))
		l.rest = append([]byte{}, rest...)
	}
	if excess := len(l.lines) - keptLines; excess > 0 {
		l.lines = append([]string{}, l.lines[excess:]...)
	}
}

// LastLines returns the newest complete lines.
func (l *logFile) LastLines() []string {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	return append([]string{}, l.lines...)
}

func (l *logFile) Close() { l.file.Close() }
