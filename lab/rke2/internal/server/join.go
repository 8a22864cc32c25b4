package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"infraflows/lab/rke2/internal/access"
	"infraflows/lab/rke2/internal/bundle"
	"infraflows/lab/rke2/internal/etcd"
	"infraflows/lab/rke2/internal/layout"
	"infraflows/lab/rke2/internal/logging"
	"infraflows/lab/rke2/internal/process"
	"infraflows/lab/rke2/internal/token"
)

// critical are the settings that every server of a cluster must share.
type critical struct {
	ClusterCIDR       string `json:"cluster-cidr"`
	ServiceCIDR       string `json:"service-cidr"`
	ClusterDomain     string `json:"cluster-domain"`
	SecretsEncryption bool   `json:"secrets-encryption"`
}

func (s *Server) critical() critical {
	c := s.config
	return critical{c.ClusterCIDR, c.ServiceCIDR, c.ClusterDomain, c.SecretsEncryption}
}

func (s *Server) tombstone() string { return s.layout.Server("db", "tombstone") }

// connect reaches the configured server; absent servers are waited for, a refusal is final.
func (s *Server) connect(ctx context.Context) (*access.Access, error) {
	var found *access.Access
	given, err := token.Parse(s.config.Token, token.ServerUser)
	if err != nil {
		given = token.Token{User: token.ServerUser, Secret: s.secret}
	}
	err = s.persist(ctx, "server "+s.config.Server, func() (err error) {
		found, err = access.Connect(ctx, s.config.Server, given)
		return err
	})
	return found, err
}

// persist repeats an act while nobody answers, and ends at once when somebody refuses.
func (s *Server) persist(ctx context.Context, what string, act func() error) error {
	var refusal error
	err := s.await(ctx, what, func(context.Context) error {
		err := act()
		if access.IsRefused(err) {
			refusal = err
			return nil
		}
		return err
	})
	return errors.Join(refusal, err)
}

// fetchBundle takes the cluster's shared files from a server that is already in.
func (s *Server) fetchBundle(ctx context.Context) error {
	server, err := s.connect(ctx)
	if err != nil {
		return err
	}
	var theirs critical
	var sealed []byte
	err = s.persist(ctx, "bootstrap data from "+s.config.Server, func() (err error) {
		if err = server.JSON(ctx, http.MethodGet, "/v1-rke2/config", nil, &theirs); err != nil {
			return err
		}
		sealed, err = server.Call(ctx, http.MethodGet, "/v1-rke2/server-bootstrap", nil, nil)
		return err
	})
	if err != nil {
		return err
	}
	if ours := s.critical(); ours != theirs {
		return fmt.Errorf("failed to validate server configuration: critical configuration value mismatch between servers: "+
			"this server has %+v, the cluster has %+v", ours, theirs)
	}
	shared, err := bundle.Open(sealed, s.secret)
	if err != nil {
		return err
	}
	return shared.Write(s.layout)
}

// startEtcd starts the local member, joining the cluster first where that is still to be done.
func (s *Server) startEtcd(ctx context.Context) error {
	join, err := s.place(ctx)
	if err != nil {
		return err
	}
	path, err := etcd.WriteConfig(s.layout, s.config, join)
	if err != nil {
		return err
	}
	child, err := process.Supervise(process.Child{
		Name: "etcd", Path: filepath.Join(s.libexec, "etcd"), Arguments: []string{"--config-file=" + path},
		Environment: []string{"GOGC=50", "GOMEMLIMIT=512MiB"}, LogFile: s.layout.Agent("logs", "etcd.log"),
		StopTimeout: 5 * time.Second, OnExit: s.onEtcdExit,
	})
	if err != nil {
		return err
	}
	s.onStop(child.Stop)
	s.etcdFailed = child.Failed()
	if err = s.awaitEtcd(ctx); err != nil {
		return err
	}
	if err = os.Remove(s.tombstone()); os.IsNotExist(err) {
		return nil
	}
	return err
}

// place says how this host's member starts: from its own data, as the first of a new cluster, or as one that joins.
func (s *Server) place(ctx context.Context) (etcd.Join, error) {
	name, err := etcd.MemberName(s.layout, s.config.NodeName)
	if err != nil {
		return etcd.Join{}, err
	}
	join := etcd.Join{Name: name, InitialCluster: name + "=" + etcd.PeerURL(s.config)}
	if etcd.IsInitialised(s.layout) {
		return join, nil
	}
	if join.IsNew = s.config.Server == ""; join.IsNew {
		return join, nil
	}
	if join, err = s.joinEtcd(ctx, name); err != nil {
		return join, fmt.Errorf("etcd cluster join failed: %w", err)
	}
	return join, nil
}

// awaitEtcd waits for a voter's health: a learner refuses reads until it is promoted.
func (s *Server) awaitEtcd(ctx context.Context) error {
	var removal error
	err := s.await(ctx, "etcd", func(ctx context.Context) error {
		select {
		case removal = <-s.etcdFailed:
			return nil
		default:
			return s.etcd.Health(ctx)
		}
	})
	return errors.Join(removal, err)
}

// joinEtcd asks the cluster for a place; "too many learners" only means that another server is joining right now.
func (s *Server) joinEtcd(ctx context.Context, name string) (join etcd.Join, err error) {
	server, err := s.connect(ctx)
	if err != nil {
		return join, err
	}
	request := etcdRequest{Name: name, NodeName: s.config.NodeName, PeerURL: etcd.PeerURL(s.config)}
	err = s.persist(ctx, "a place in the etcd cluster", func() error {
		return server.JSON(ctx, http.MethodPost, "/v1-rke2/etcd/members", request, &join)
	})
	if err == nil {
		logging.Info("Adding member %s=%s to etcd cluster", name, request.PeerURL)
	}
	return join, err
}

// onEtcdExit ends the server when its member was removed from the cluster: its data is set aside, so that the next
// start joins anew instead of failing for ever.
func (s *Server) onEtcdExit(lastLines []string) error {
	text := strings.Join(lastLines, "\n")
	if !strings.Contains(text, "the member has been permanently removed from the cluster") &&
		!strings.Contains(text, "member count is unequal") {
		return nil
	}
	if err := layout.WriteAtomic(s.tombstone(), []byte("removed\n"), 0o600); err != nil {
		return err
	}
	if err := etcd.SetAside(s.layout); err != nil {
		return err
	}
	return errRemoved
}
