package server

import (
	"context"
	"crypto/subtle"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"infraflows/lab/rke2/internal/bundle"
	"infraflows/lab/rke2/internal/etcd"
	"infraflows/lab/rke2/internal/logging"
	"infraflows/lab/rke2/internal/token"
)

type etcdRequest struct {
	Name     string `json:"name"`
	NodeName string `json:"nodeName"`
	PeerURL  string `json:"peerURL"`
}

// failure is an answer other than success.
type failure struct {
	status  int
	message string
}

func (f *failure) Error() string { return f.message }

func refuse(status int, format string, arguments ...any) error {
	return &failure{status, fmt.Sprintf(format, arguments...)}
}

type handler func(*http.Request) ([]byte, error)

// listen serves the supervisor port. It is up before the API server: joining servers need only etcd.
func (s *Server) listen(ctx context.Context) error {
	certificate, err := tls.LoadX509KeyPair(s.layout.TLS("serving-kube-apiserver.crt"), s.layout.TLS("serving-kube-apiserver.key"))
	if err != nil {
		return err
	}
	var listener net.Listener
	err = s.await(ctx, "port 9345", func(context.Context) (err error) {
		listener, err = net.Listen("tcp", ":9345")
		return err
	})
	if err != nil {
		return err
	}
	server := &http.Server{
		Handler: s.routes(), ReadHeaderTimeout: 10 * time.Second, ErrorLog: log.New(io.Discard, "", 0),
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12},
	}
	go func() {
		if err := server.ServeTLS(listener, "", ""); !errors.Is(err, http.ErrServerClosed) {
			logging.Error("The supervisor port ended: %v", err)
		}
	}()
	s.onStop(func() { server.Close() })
	logging.Info("Supervisor is listening on port 9345")
	return nil
}

func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	open := func(*http.Request) error { return nil }
	add := func(pattern string, allow func(*http.Request) error, handle handler) {
		mux.HandleFunc(pattern, func(writer http.ResponseWriter, request *http.Request) {
			err := allow(request)
			var body []byte
			if err == nil {
				body, err = handle(request)
			}
			if err != nil {
				writeError(writer, request, err)
				return
			}
			_, _ = writer.Write(body)
		})
	}
	add("GET /ping", open, func(*http.Request) ([]byte, error) { return []byte("pong"), nil })
	add("GET /cacerts", open, func(*http.Request) ([]byte, error) { return s.authorities.Server.PEM, nil })
	add("GET /v1-rke2/readyz", s.allowNode, s.handleReady)
	add("GET /v1-rke2/config", s.allowNode, func(*http.Request) ([]byte, error) { return json.Marshal(s.critical()) })
	add("GET /v1-rke2/apiservers", s.allowNode, s.handleAPIServers)
	add("GET /v1-rke2/client-ca.crt", s.allowNode, func(*http.Request) ([]byte, error) { return s.authorities.Client.PEM, nil })
	add("POST /v1-rke2/client-kubelet.crt", s.allowNode, s.handleClientKubelet)
	add("POST /v1-rke2/serving-kubelet.crt", s.allowNode, s.handleServingKubelet)
	add("GET /v1-rke2/server-bootstrap", s.allowServer, s.handleBootstrap)
	add("POST /v1-rke2/etcd/members", s.allowServer, s.handleMember)
	add("PUT /v1-rke2/token", s.allowServer, s.handleToken)
	add("GET /v1-rke2/encrypt/status", s.allowServer, s.handleEncryptStatus)
	add("POST /v1-rke2/encrypt/rotate-keys", s.allowServer, s.handleRotateKeys)
	return mux
}

func writeError(writer http.ResponseWriter, request *http.Request, err error) {
	status := http.StatusServiceUnavailable
	var known *failure
	if errors.As(err, &known) {
		status = known.status
	}
	if status != http.StatusServiceUnavailable {
		logging.Error("Sending HTTP %d response to %s: %v", status, request.RemoteAddr, err)
	}
	http.Error(writer, err.Error(), status)
}

// allowServer asks for the server token.
func (s *Server) allowServer(request *http.Request) error {
	user, password, _ := request.BasicAuth()
	if user == token.ServerUser && same(password, s.token()) {
		return nil
	}
	return refuse(http.StatusUnauthorized, "Unauthorized: the server token is required")
}

// allowNode asks for the agent token; the server token serves as well.
func (s *Server) allowNode(request *http.Request) error {
	s.mutex.Lock()
	secret, agentSecret := s.secret, s.agentSecret
	s.mutex.Unlock()
	user, password, _ := request.BasicAuth()
	isNode := user == token.NodeUser || user == token.ServerUser
	if isNode && (same(password, secret) || user == token.NodeUser && agentSecret != "" && same(password, agentSecret)) {
		return nil
	}
	return refuse(http.StatusUnauthorized, "Unauthorized: the token is not the cluster's")
}

func same(left, right string) bool {
	return subtle.ConstantTimeCompare([]byte(left), []byte(right)) == 1
}

func (s *Server) handleReady(*http.Request) ([]byte, error) {
	if !s.isReady.Load() {
		return nil, refuse(http.StatusServiceUnavailable, "apiserver not ready")
	}
	return []byte("ok"), nil
}

func (s *Server) handleAPIServers(request *http.Request) ([]byte, error) {
	addresses, err := s.apiServers(request.Context())
	if err != nil {
		return nil, err
	}
	return json.Marshal(addresses)
}

func (s *Server) handleBootstrap(*http.Request) ([]byte, error) {
	shared, err := bundle.Collect(s.layout)
	if err != nil {
		return nil, err
	}
	return shared.Seal(s.token())
}

func (s *Server) handleMember(request *http.Request) ([]byte, error) {
	var wanted etcdRequest
	if err := json.NewDecoder(io.LimitReader(request.Body, 1<<16)).Decode(&wanted); err != nil {
		return nil, refuse(http.StatusBadRequest, "the request is not valid: %v", err)
	}
	peer, err := url.Parse(wanted.PeerURL)
	if err != nil || peer.Scheme != "https" || wanted.Name == "" || wanted.NodeName == "" {
		return nil, refuse(http.StatusBadRequest, "the request names no member")
	}
	if _, err = netip.ParseAddr(peer.Hostname()); err != nil {
		return nil, refuse(http.StatusBadRequest, "the peer URL %q holds no address", wanted.PeerURL)
	}
	if err = s.checkUnique(request.Context(), wanted); err != nil {
		return nil, err
	}
	s.hasLearners.Store(time.Now().Add(time.Minute).Unix())
	join, err := etcd.AddMember(request.Context(), s.etcd, wanted.Name, wanted.PeerURL)
	if errors.Is(err, etcd.ErrDuplicate) {
		return nil, refuse(http.StatusConflict, "%v", err)
	}
	if err != nil {
		return nil, err
	}
	return json.Marshal(join)
}

// checkUnique refuses a node name that a member at another address has.
func (s *Server) checkUnique(ctx context.Context, wanted etcdRequest) error {
	members, err := s.etcd.Members(ctx)
	if err != nil {
		return err
	}
	for _, member := range members {
		index := strings.LastIndex(member.Name, "-")
		if index < 0 || member.Name[:index] != wanted.NodeName || member.IsLearner {
			continue
		}
		if len(member.PeerURLs) != 1 || member.PeerURLs[0] != wanted.PeerURL {
			return refuse(http.StatusConflict, "%v: %s is a member at %v", etcd.ErrDuplicate, member.Name, member.PeerURLs)
		}
	}
	return nil
}

// handleToken replaces the cluster's token: the bundle is sealed anew before the old one is dropped.
func (s *Server) handleToken(request *http.Request) ([]byte, error) {
	var wanted struct {
		NewToken string `json:"newToken"`
	}
	if err := json.NewDecoder(io.LimitReader(request.Body, 1<<16)).Decode(&wanted); err != nil {
		return nil, refuse(http.StatusBadRequest, "the request is not valid: %v", err)
	}
	fresh, err := token.Parse(wanted.NewToken, token.ServerUser)
	if err != nil {
		return nil, refuse(http.StatusBadRequest, "%v", err)
	}
	s.rotation.Lock()
	defer s.rotation.Unlock()
	old := s.token()
	if fresh.Secret == old {
		return []byte("Token is unchanged\n"), nil
	}
	if err = s.resealBundle(request.Context(), old, fresh.Secret); err != nil {
		return nil, err
	}
	s.mutex.Lock()
	s.secret = fresh.Secret
	s.mutex.Unlock()
	if err = s.writeTokens(); err != nil {
		return nil, err
	}
	if err = s.etcd.Delete(request.Context(), bundle.Key(old)); err != nil {
		return nil, err
	}
	return []byte("Token rotated, restart rke2 nodes with new token\n"), nil
}

func (s *Server) resealBundle(ctx context.Context, old, fresh string) error {
	shared, _, err := s.readBundle(ctx)
	if err != nil {
		return err
	}
	if shared == nil {
		return fmt.Errorf("the cluster's bootstrap data is missing")
	}
	sealed, err := shared.Seal(fresh)
	if err != nil {
		return err
	}
	_, revision, err := s.etcd.Get(ctx, bundle.Key(fresh))
	if err != nil {
		return err
	}
	isStored, err := s.etcd.PutIf(ctx, bundle.Key(fresh), sealed, revision)
	if err == nil && !isStored {
		err = fmt.Errorf("another server is rotating the token")
	}
	return err
}
