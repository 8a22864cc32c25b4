// Package snapshot saves, lists and deletes etcd snapshots, with RKE2's names and places.
//
// It promises that a snapshot under its final name is complete: etcdctl writes to another name first, and its status is
// read back before the rename.
package snapshot

import (
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"infraflows/lab/rke2/internal/config"
	"infraflows/lab/rke2/internal/layout"
)

// Snapshot is one saved file.
type Snapshot struct {
	Name    string
	Path    string
	Bytes   int64
	Created time.Time
}

// Store is the host's directory of snapshots.
type Store struct {
	layout    layout.Layout
	directory string
	node      string
	libexec   string
	isGzip    bool
}

// New returns the host's store.
func New(l layout.Layout, c *config.Config, libexec string) *Store {
	directory := c.SnapshotDir
	if directory == "" {
		directory = l.Snapshots()
	}
	return &Store{layout: l, directory: directory, node: c.NodeName, libexec: libexec, isGzip: c.SnapshotCompress}
}

// Save writes <name>-<node>-<unix time> and returns it.
func (s *Store) Save(ctx context.Context, name string) (Snapshot, error) {
	if err := os.MkdirAll(s.directory, 0o700); err != nil {
		return Snapshot{}, err
	}
	final := filepath.Join(s.directory, fmt.Sprintf("%s-%s-%d", name, s.node, time.Now().Unix()))
	temporary := filepath.Join(s.directory, ".saving-"+filepath.Base(final))
	defer os.Remove(temporary)
	if err := s.run(ctx, "snapshot", "save", temporary); err != nil {
		return Snapshot{}, err
	}
	if s.isGzip {
		if err := compress(temporary, temporary+".zip"); err != nil {
			return Snapshot{}, err
		}
		final += ".gz"
		if err := os.Rename(temporary+".zip", temporary); err != nil {
			return Snapshot{}, err
		}
	}
	if err := os.Chmod(temporary, 0o600); err != nil {
		return Snapshot{}, err
	}
	if err := os.Rename(temporary, final); err != nil {
		return Snapshot{}, err
	}
	return describe(final)
}

// run calls etcdctl with the host's client certificate; etcdctl itself checks the saved file's hash.
func (s *Store) run(ctx context.Context, arguments ...string) error {
	common := []string{
		"--endpoints=https://127.0.0.1:2379", "--cacert=" + s.layout.TLS("etcd", "server-ca.crt"),
		"--cert=" + s.layout.TLS("etcd", "client.crt"), "--key=" + s.layout.TLS("etcd", "client.key"),
		"--command-timeout=120s",
	}
	command := exec.CommandContext(ctx, filepath.Join(s.libexec, "etcdctl"), append(common, arguments...)...)
	output, err := command.CombinedOutput()
	if err != nil {
		lines := strings.Split(strings.TrimSpace(string(output)), "\n")
		return fmt.Errorf("unable to save the snapshot: %s", lines[len(lines)-1])
	}
	return nil
}

func compress(source, target string) error {
	input, err := os.Open(source)
	if err != nil {
		return err
	}
	defer input.Close()
	output, err := os.Create(target)
	if err != nil {
		return err
	}
	defer output.Close()
	writer := gzip.NewWriter(output)
	if _, err = io.Copy(writer, input); err != nil {
		return err
	}
	return writer.Close()
}

func describe(path string) (Snapshot, error) {
	status, err := os.Stat(path)
	if err != nil {
		return Snapshot{}, err
	}
	return Snapshot{Name: filepath.Base(path), Path: path, Bytes: status.Size(), Created: status.ModTime()}, nil
}

// List returns the finished snapshots, oldest first.
func (s *Store) List() ([]Snapshot, error) {
	entries, err := os.ReadDir(s.directory)
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var result []Snapshot
	for _, entry := range entries {
		if entry.IsDir() || strings.HasPrefix(entry.Name(), ".") {
			continue
		}
		found, err := describe(filepath.Join(s.directory, entry.Name()))
		if err != nil {
			return nil, err
		}
		result = append(result, found)
	}
	sort.Slice(result, func(i, j int) bool { return result[i].Created.Before(result[j].Created) })
	return result, nil
}

// Delete removes a snapshot by name; an absent one is a success, which it reports.
func (s *Store) Delete(name string) (bool, error) {
	if name != filepath.Base(name) || strings.HasPrefix(name, ".") {
		return false, fmt.Errorf("%q is not the name of a snapshot", name)
	}
	err := os.Remove(filepath.Join(s.directory, name))
	if os.IsNotExist(err) {
		return false, nil
	}
	return err == nil, err
}

// Prune keeps the newest of the snapshots with that prefix.
func (s *Store) Prune(name string, keep int) error {
	all, err := s.List()
	if err != nil {
		return err
	}
	var ours []Snapshot
	for _, candidate := range all {
		if strings.HasPrefix(candidate.Name, name+"-"+s.node+"-") {
			ours = append(ours, candidate)
		}
	}
	for ; len(ours) > keep; ours = ours[1:] {
		if _, err = s.Delete(ours[0].Name); err != nil {
			return err
		}
	}
	return nil
}
