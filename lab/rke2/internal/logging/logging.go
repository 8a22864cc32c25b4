// Package logging writes lines as RKE2 does (logfmt on stderr), so that what reads RKE2's journal reads the lab's.
package logging

import (
	"fmt"
	"os"
	"sync"
	"time"
)

var (
	mutex sync.Mutex
	debug bool
)

// EnableDebug lets debug lines through.
func EnableDebug() { debug = true }

func Debug(format string, arguments ...any) {
	if debug {
		write("debug", format, arguments...)
	}
}
func Info(format string, arguments ...any)    { write("info", format, arguments...) }
func Warning(format string, arguments ...any) { write("warning", format, arguments...) }
func Error(format string, arguments ...any)   { write("error", format, arguments...) }
func Fatal(format string, arguments ...any) {
	write("fatal", format, arguments...)
	os.Exit(1)
}

func write(level, format string, arguments ...any) {
	mutex.Lock()
	defer mutex.Unlock()
	fmt.Fprintf(os.Stderr, "time=%q level=%s msg=%q\n", time.Now().UTC().Format(time.RFC3339), level,
		fmt.Sprintf(format, arguments...))
}
