// Package sdnotify tells systemd that a Type=notify service is ready.
package sdnotify

import (
	"net"
	"os"
)

// Send passes one state line to systemd; without NOTIFY_SOCKET it does nothing.
func Send(state string) error {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil
	}
	connection, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer connection.Close()
	_, err = connection.Write([]byte(state))
	return err
}
