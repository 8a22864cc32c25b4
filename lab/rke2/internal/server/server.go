// Package server is `rke2 server`: etcd, the Kubernetes control plane and the supervisor port of one host.
//
// It promises that every step can be killed at any instruction and run again: authorities are made once, a join that
// did not finish is replaced, a member that has data starts from it without asking anyone. It refuses a token other
// than the cluster's, settings that differ from the cluster's, and to found a second cluster after its member was
// removed from the first.
package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"infraflows/lab/rke2/internal/agent"
	"infraflows/lab/rke2/internal/bundle"
	"infraflows/lab/rke2/internal/config"
	"infraflows/lab/rke2/internal/etcd"
	"infraflows/lab/rke2/internal/kube"
	"infraflows/lab/rke2/internal/layout"
	"infraflows/lab/rke2/internal/logging"
	"infraflows/lab/rke2/internal/pki"
	"infraflows/lab/rke2/internal/process"
	"infraflows/lab/rke2/internal/sdnotify"
	"infraflows/lab/rke2/internal/token"
	"infraflows/lab/rke2/internal/version"
)

const (
	localAPI   = "https://127.0.0.1:6443"
	supervisor = "https://127.0.0.1:9345"
	poll       = 100 * time.Millisecond
)

// errRemoved says that the cluster has removed this host's member.
var errRemoved = errors.New("this server has been removed from the cluster")

// Server is one host's control plane.
type Server struct {
	config  *config.Config
	layout  layout.Layout
	libexec string

	mutex       sync.Mutex // guards the two secrets, which a token rotation changes
	secret      string
	agentSecret string

	authorities *pki.Authorities
	etcd        *etcd.Client
	kube        *kube.Client
	isReady     atomic.Bool
	hasLearners atomic.Int64 // unix time until which learners are looked for often
	rotation    sync.Mutex   // one change of the shared bundle at a time
	stops       []func()
	apiServer   *process.Supervised
	etcdFailed  <-chan error
}

// New prepares a server; nothing runs yet.
func New(c *config.Config, l layout.Layout, libexec string) *Server {
	return &Server{config: c, layout: l, libexec: libexec}
}

// Run brings the server up, tells systemd, and stops everything in reverse when the context ends.
func (s *Server) Run(ctx context.Context) error {
	begin := time.Now()
	defer s.stop()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if err := s.prepare(ctx); err != nil {
		return fmt.Errorf("starting kubernetes: preparing server: %w", err)
	}
	if err := s.startEtcd(ctx); err != nil {
		return fmt.Errorf("starting kubernetes: %w", err)
	}
	go func() {
		select {
		case err := <-s.etcdFailed:
			cancel(err)
		case <-ctx.Done():
		}
	}()
	if err := s.startControlPlane(ctx, begin); err != nil {
		return errors.Join(cause(ctx), err)
	}
	logging.Info("rke2 is up and running (%s after its start)", time.Since(begin).Round(time.Millisecond))
	if err := sdnotify.Send("READY=1"); err != nil {
		logging.Warning("Unable to tell systemd that the server is ready: %v", err)
	}
	s.superviseCluster(ctx)
	<-ctx.Done()
	_ = sdnotify.Send("STOPPING=1")
	return cause(ctx)
}

// cause is the error that ended the context, unless somebody asked for the end.
func cause(ctx context.Context) error {
	if err := context.Cause(ctx); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

func (s *Server) stop() {
	for index := len(s.stops) - 1; index >= 0; index-- {
		s.stops[index]()
	}
}

func (s *Server) onStop(stop func()) { s.stops = append(s.stops, stop) }

// prepare settles the token, the shared files and the certificates.
func (s *Server) prepare(ctx context.Context) error {
	logging.Info("Starting rke2 %s (%s)", version.Version, version.Distribution)
	if err := checkHost(s.config); err != nil {
		return err
	}
	isMember := etcd.IsInitialised(s.layout)
	if err := s.settleToken(isMember); err != nil {
		return err
	}
	if !isMember && s.config.Server == "" {
		if _, err := os.Stat(s.tombstone()); err == nil {
			return fmt.Errorf("%w. Set server: to join it again; without it a second cluster would be founded", errRemoved)
		}
	}
	if !isMember && s.config.Server != "" {
		if err := s.fetchBundle(ctx); err != nil {
			return err
		}
	}
	var err error
	if s.authorities, err = pki.EnsureAuthorities(s.layout); err != nil {
		return err
	}
	if err = s.ensureSecrets(); err != nil {
		return err
	}
	if _, err = pki.EnsureServerLeaves(s.layout, s.config, s.authorities); err != nil {
		return err
	}
	if err = s.writeKubeconfigs(); err != nil {
		return err
	}
	if err = s.writeDefaults(); err != nil {
		return err
	}
	if err = s.linkBinaries(); err != nil {
		return err
	}
	return s.openClients()
}

func (s *Server) openClients() (err error) {
	if s.etcd, err = etcd.NewClient(s.layout); err != nil {
		return err
	}
	s.kube, err = kube.NewClient(localAPI, kube.Credentials{
		Authority: s.layout.TLS("server-ca.crt"), Certificate: s.layout.TLS("client-supervisor.crt"),
		Key: s.layout.TLS("client-supervisor.key"),
	})
	return err
}

// settleToken takes the configured token, else the one on disk, else (for a new cluster) makes one.
func (s *Server) settleToken(isMember bool) error {
	text := s.config.Token
	if text == "" {
		if content, err := os.ReadFile(s.layout.Token()); err == nil {
			text = string(content)
		}
	}
	if text == "" && (isMember || s.config.Server != "") {
		return fmt.Errorf("--token is required to join a cluster")
	}
	if text == "" {
		generated, err := token.Generate()
		if err != nil {
			return err
		}
		text = generated
	}
	parsed, err := token.Parse(text, token.ServerUser)
	if err != nil {
		return err
	}
	s.secret = parsed.Secret
	return nil
}

// ensureSecrets writes the token files, the agents' secret and, for a new cluster, the encryption key.
func (s *Server) ensureSecrets() error {
	path := s.layout.Server(bundle.AgentSecret)
	configured := s.config.AgentToken
	if configured != "" {
		parsed, err := token.Parse(configured, token.NodeUser)
		if err != nil {
			return err
		}
		if err = layout.WriteAtomic(path, []byte(parsed.Secret), 0o600); err != nil {
			return err
		}
	}
	content, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	s.mutex.Lock()
	s.agentSecret = strings.TrimSpace(string(content))
	s.mutex.Unlock()
	if s.config.SecretsEncryption {
		if _, err = os.Stat(s.layout.EncryptionConfig()); os.IsNotExist(err) {
			fresh, err := bundle.NewEncryptionConfig(s.config.EncryptionProvider)
			if err != nil {
				return err
			}
			if err = fresh.Write(s.layout); err != nil {
				return err
			}
		}
	}
	return s.writeTokens()
}

func (s *Server) writeTokens() error {
	s.mutex.Lock()
	secret, agentSecret := s.secret, s.agentSecret
	s.mutex.Unlock()
	authority := s.authorities.Server.PEM
	full := token.Format(authority, token.ServerUser, secret) + "\n"
	if err := layout.WriteAtomic(s.layout.Token(), []byte(full), 0o600); err != nil {
		return err
	}
	if err := relink("token", s.layout.NodeToken()); err != nil {
		return err
	}
	if agentSecret == "" {
		return relink("token", s.layout.AgentToken())
	}
	if err := os.Remove(s.layout.AgentToken()); err != nil && !os.IsNotExist(err) {
		return err
	}
	full = token.Format(authority, token.NodeUser, agentSecret) + "\n"
	return layout.WriteAtomic(s.layout.AgentToken(), []byte(full), 0o600)
}

func relink(target, path string) error {
	if current, err := os.Readlink(path); err == nil && current == target {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	temporary := path + ".new"
	if err := os.Remove(temporary); err != nil && !os.IsNotExist(err) {
		return err
	}
	if err := os.Symlink(target, temporary); err != nil {
		return err
	}
	return os.Rename(temporary, path)
}

func (s *Server) linkBinaries() error {
	return LinkBinaries(s.layout, s.libexec)
}

// LinkBinaries puts the parts where an operator of RKE2 looks for them.
func LinkBinaries(l layout.Layout, libexec string) error {
	for _, name := range []string{"kubectl", "etcdctl", "etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kwok"} {
		if err := relink(filepath.Join(libexec, name), l.Bin(name)); err != nil {
			return err
		}
	}
	return nil
}

// startControlPlane goes up in order: API server, then what needs it; the supervisor listens as soon as etcd serves.
func (s *Server) startControlPlane(ctx context.Context, begin time.Time) error {
	if err := s.reconcileBundle(ctx); err != nil {
		return err
	}
	api, err := s.component("kube-apiserver", s.apiServerArguments(), "1200MiB")
	if err != nil {
		return err
	}
	s.apiServer = api
	s.onStop(api.Stop)
	if err = s.listen(ctx); err != nil {
		return err
	}
	go s.manageLearners(ctx)
	if err = s.await(ctx, "the API server", s.kube.Ready); err != nil {
		return err
	}
	logging.Info("Kube API server is now running (%s after the start)", time.Since(begin).Round(time.Millisecond))
	if err = s.await(ctx, "the API server to take the lab's roles", s.applyRoles); err != nil {
		return err
	}
	manager, err := s.component("kube-controller-manager", s.controllerManagerArguments(), "384MiB")
	if err != nil {
		return err
	}
	s.onStop(manager.Stop)
	scheduler, err := s.component("kube-scheduler", s.schedulerArguments(), "256MiB")
	if err != nil {
		return err
	}
	s.onStop(scheduler.Stop)
	s.isReady.Store(true)
	return s.startAgent(ctx)
}

func (s *Server) startAgent(ctx context.Context) error {
	local := &agent.Agent{
		Config: s.config, Layout: s.layout, Libexec: s.libexec, Server: supervisor,
		Token: token.Token{User: token.ServerUser, Secret: s.token()},
	}
	s.onStop(local.Stop)
	if err := local.Start(ctx); err != nil {
		return err
	}
	return s.await(ctx, "the node's roles", s.markNode)
}

// await polls until the act succeeds; it names what it waits for when that takes long.
func (s *Server) await(ctx context.Context, what string, act func(context.Context) error) error {
	next := time.Now().Add(5 * time.Second)
	for {
		err := act(ctx)
		if err == nil {
			return nil
		}
		if time.Now().After(next) {
			logging.Info("Waiting for %s: %v", what, err)
			next = time.Now().Add(10 * time.Second)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(poll):
		}
	}
}
