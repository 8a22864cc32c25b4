package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"infraflows/lab/rke2/internal/bundle"
	"infraflows/lab/rke2/internal/etcd"
	"infraflows/lab/rke2/internal/logging"
)

const (
	learnerPoll     = 250 * time.Millisecond
	idleLearnerPoll = 2 * time.Second
	// A learner that never started blocks the next join (etcd admits one at a time); one that started may be slow.
	unstartedLearnerLife = 45 * time.Second
	startedLearnerLife   = 5 * time.Minute
)

// token returns the secret that seals the bundle now.
func (s *Server) token() string {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return s.secret
}

// readBundle returns the cluster's bundle and its revision; (nil, "") when the cluster has none yet.
func (s *Server) readBundle(ctx context.Context) (bundle.Bundle, string, error) {
	sealed, revision, err := s.etcd.Get(ctx, bundle.Key(s.token()))
	if err != nil {
		return nil, "", err
	}
	if revision != "" {
		shared, err := bundle.Open(sealed, s.token())
		return shared, revision, err
	}
	others, err := s.etcd.Keys(ctx, bundle.Prefix)
	if err == nil && len(others) > 0 {
		err = bundle.ErrWrongToken
	}
	return nil, "", err
}

// reconcileBundle stores this host's files as the cluster's, or takes over the cluster's where they are newer.
func (s *Server) reconcileBundle(ctx context.Context) error {
	for {
		shared, revision, err := s.readBundle(ctx)
		if err != nil {
			return fmt.Errorf("preparing server: bootstrap: %w", err)
		}
		own, err := bundle.Collect(s.layout)
		if err != nil {
			return err
		}
		if revision != "" {
			_, err = s.adopt(own, shared)
			return err
		}
		sealed, err := own.Seal(s.token())
		if err != nil {
			return err
		}
		if isStored, err := s.etcd.PutIf(ctx, bundle.Key(s.token()), sealed, ""); err != nil || isStored {
			return err
		}
	}
}

// adopt writes what differs; an authority that differs is another cluster's and is refused.
func (s *Server) adopt(own, shared bundle.Bundle) (bool, error) {
	changed := bundle.Bundle{}
	for name, content := range shared {
		if bytes.Equal(own[name], content) {
			continue
		}
		if name != bundle.Encryption && name != bundle.AgentSecret {
			return false, fmt.Errorf("%s differs from the cluster's: this host holds another cluster's certificates", name)
		}
		changed[name] = content
	}
	if len(changed) == 0 {
		return false, nil
	}
	if err := changed.Write(s.layout); err != nil {
		return false, err
	}
	return true, s.ensureSecrets()
}

// followBundle applies what another server changed: a rotated encryption key, a new agent token.
func (s *Server) followBundle(ctx context.Context) {
	last, isTold := "", false
	for every(ctx, 2*time.Second) {
		shared, revision, err := s.readBundle(ctx)
		if errors.Is(err, bundle.ErrWrongToken) {
			if !isTold {
				logging.Warning("The cluster's token was rotated. Restart this server with the new one")
			}
			isTold = true
			continue
		}
		if err != nil || revision == last || revision == "" {
			continue
		}
		own, err := bundle.Collect(s.layout)
		if err != nil {
			logging.Warning("Unable to read the shared files: %v", err)
			continue
		}
		isEncryptionNew := !bytes.Equal(own[bundle.Encryption], shared[bundle.Encryption])
		if _, err = s.adopt(own, shared); err != nil {
			logging.Error("Unable to take over the cluster's shared files: %v", err)
			continue
		}
		if isEncryptionNew {
			if err = s.reloadEncryption(ctx); err != nil {
				logging.Error("Unable to reload the encryption keys: %v", err)
				continue
			}
		}
		last = revision
	}
}

// every waits for the interval; false means that the server stops.
func every(ctx context.Context, interval time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(interval):
		return true
	}
}

// manageLearners promotes learners that caught up and removes those that block the cluster's growth.
func (s *Server) manageLearners(ctx context.Context) {
	seen := map[string]time.Time{}
	interval := idleLearnerPoll
	for every(ctx, interval) {
		interval = idleLearnerPoll
		if time.Now().Unix() < s.hasLearners.Load() {
			interval = learnerPoll
		}
		left, err := etcd.PromoteLearners(ctx, s.etcd)
		if err != nil {
			continue
		}
		current := map[string]time.Time{}
		for _, member := range left {
			interval = learnerPoll
			since, isKnown := seen[member.ID]
			if !isKnown {
				since = time.Now()
			}
			current[member.ID] = since
			s.removeStalled(ctx, member, time.Since(since))
		}
		seen = current
	}
}

func (s *Server) removeStalled(ctx context.Context, member etcd.Member, age time.Duration) {
	life := startedLearnerLife
	if member.Name == "" {
		life = unstartedLearnerLife
	}
	if age < life {
		return
	}
	logging.Warning("Removing etcd learner %s (%v): it made no progress for %s", member.ID, member.PeerURLs, life)
	if err := s.etcd.Remove(ctx, member.ID); err != nil {
		logging.Warning("Unable to remove etcd learner %s: %v", member.ID, err)
	}
}
