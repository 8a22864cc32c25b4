// Package balancer is the agent's load balancer in front of the servers, as RKE2 runs one on 127.0.0.1.
//
// It promises that a dead server costs one failed dial, and that the list of servers outlives a restart of the agent.
package balancer

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"infraflows/lab/rke2/internal/layout"
	"infraflows/lab/rke2/internal/logging"
)

const dialTimeout = 2 * time.Second

// Balancer forwards TCP connections to the first server that answers.
type Balancer struct {
	path    string
	mutex   sync.Mutex
	servers []string
	open    map[net.Conn]string // server side of each connection
}

type stored struct {
	Servers []string `json:"ServerAddresses"`
}

// Start listens; first is the server that the configuration names.
func Start(ctx context.Context, listen, first, path string) (*Balancer, error) {
	b := &Balancer{path: path, open: map[net.Conn]string{}}
	var earlier stored
	if content, err := os.ReadFile(path); err == nil {
		_ = json.Unmarshal(content, &earlier) // a damaged list is rebuilt from the configured server
	}
	b.servers = earlier.Servers
	if !slices.Contains(b.servers, first) {
		b.servers = append(b.servers, first)
	}
	listener, err := net.Listen("tcp", listen)
	if err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, func() { listener.Close() })
	logging.Info("Running load balancer %s -> %v", listen, b.servers)
	go b.accept(listener)
	return b, nil
}

func (b *Balancer) accept(listener net.Listener) {
	for {
		client, err := listener.Accept()
		if err != nil {
			return
		}
		go b.serve(client)
	}
}

// SetServers replaces the list and closes the connections to servers that are no longer in it.
func (b *Balancer) SetServers(servers []string) {
	if len(servers) == 0 {
		return
	}
	b.mutex.Lock()
	defer b.mutex.Unlock()
	kept := slices.DeleteFunc(slices.Clone(b.servers), func(name string) bool { return !slices.Contains(servers, name) })
	for _, name := range servers {
		if !slices.Contains(kept, name) {
			kept = append(kept, name)
		}
	}
	if slices.Equal(kept, b.servers) {
		return
	}
	b.servers = kept
	logging.Info("Updated load balancer servers: %v", kept)
	for connection, name := range b.open {
		if !slices.Contains(kept, name) {
			connection.Close()
		}
	}
	content, err := json.Marshal(stored{Servers: kept})
	if err == nil {
		err = layout.WriteAtomic(b.path, content, 0o600)
	}
	if err != nil {
		logging.Warning("Unable to keep the list of servers: %v", err)
	}
}

func (b *Balancer) serve(client net.Conn) {
	defer client.Close()
	server, name := b.dial()
	if server == nil {
		return
	}
	b.mutex.Lock()
	b.open[server] = name
	b.mutex.Unlock()
	defer func() {
		server.Close()
		b.mutex.Lock()
		delete(b.open, server)
		b.mutex.Unlock()
	}()
	done := make(chan struct{}, 2)
	forward := func(target, source net.Conn) {
		_, _ = io.Copy(target, source)
		done <- struct{}{}
	}
	go forward(server, client)
	go forward(client, server)
	<-done
}

// dial tries the servers in order and moves a silent one to the end.
func (b *Balancer) dial() (net.Conn, string) {
	b.mutex.Lock()
	servers := slices.Clone(b.servers)
	b.mutex.Unlock()
	dialer := net.Dialer{Timeout: dialTimeout, KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: 5 * time.Second, Interval: 2 * time.Second, Count: 3}}
	for _, name := range servers {
		connection, err := dialer.Dial("tcp", name)
		if err == nil {
			return connection, name
		}
		b.demote(name)
	}
	return nil, ""
}

func (b *Balancer) demote(name string) {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	if index := slices.Index(b.servers, name); index >= 0 && len(b.servers) > 1 {
		b.servers = append(slices.Delete(slices.Clone(b.servers), index, index+1), name)
	}
}
