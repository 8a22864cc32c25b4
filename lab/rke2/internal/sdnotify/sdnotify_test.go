package sdnotify

import (
	"net"
	"path/filepath"
	"testing"
)

func TestSystemdHearsThatTheServiceIsReady(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	systemd, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer systemd.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	if err = Send("READY=1"); err != nil {
		t.Fatal(err)
	}
	buffer := make([]byte, 64)
	count, err := systemd.Read(buffer)
	if err != nil || string(buffer[:count]) != "READY=1" {
		t.Fatalf("heard %q, %v", buffer[:count], err)
	}
}

func TestWithoutSystemdNothingIsSent(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	if err := Send("READY=1"); err != nil {
		t.Fatal(err)
	}
}
