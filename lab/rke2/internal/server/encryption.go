package server

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"sort"
	"strings"
	"time"

	"infraflows/lab/rke2/internal/bundle"
	"infraflows/lab/rke2/internal/kube"
	"infraflows/lab/rke2/internal/logging"
)

const (
	rotationDeadline = 3 * time.Minute
	// Servers reload one after the other, so that the cluster keeps an API server.
	reloadSpacing = 8 * time.Second
)

// EncryptionStatus is what `rke2 secrets-encrypt status` shows.
type EncryptionStatus struct {
	IsEnabled bool     `json:"enabled"`
	Stage     string   `json:"stage"`
	Hashes    string   `json:"hashes"`
	KeyType   string   `json:"keyType"`
	Active    string   `json:"activeKey"`
	Inactive  []string `json:"inactiveKeys"`
}

func (s *Server) handleEncryptStatus(request *http.Request) ([]byte, error) {
	if !s.config.SecretsEncryption {
		return json.Marshal(EncryptionStatus{Stage: "start"})
	}
	settings, err := bundle.ReadEncryptionConfig(s.layout)
	if err != nil {
		return nil, err
	}
	status := EncryptionStatus{IsEnabled: true, Stage: "reencrypt_finished", KeyType: settings.KeyType(), Hashes: "All hashes match"}
	for index, key := range settings.Keys() {
		if index == 0 {
			status.Active = key.Name
		} else {
			status.Inactive = append(status.Inactive, key.Name)
			status.Stage = "rotate"
		}
	}
	if status.Stage != "rotate" && !strings.Contains(status.Active, "key-") {
		status.Stage = "start"
	}
	behind, err := s.serversBehind(request.Context(), settings.Digest())
	if err != nil {
		return nil, err
	}
	if len(behind) > 0 {
		status.Hashes = fmt.Sprintf("hash does not match between servers: %s", strings.Join(behind, ", "))
	}
	return json.Marshal(status)
}

// serversBehind names the servers whose API server does not hold the keys with that digest yet.
func (s *Server) serversBehind(ctx context.Context, digest string) ([]string, error) {
	nodes, err := s.serverNodes(ctx)
	if err != nil {
		return nil, err
	}
	var behind []string
	for _, node := range nodes {
		if kube.Text(node, "metadata", "annotations", encryptionAnnotation) != "start-"+digest {
			behind = append(behind, kube.Text(node, "metadata", "name"))
		}
	}
	return behind, nil
}

func (s *Server) serverNodes(ctx context.Context) ([]kube.Object, error) {
	list, err := s.kube.Get(ctx, "/api/v1/nodes?labelSelector=node-role.kubernetes.io%2Fcontrol-plane%3Dtrue")
	return kube.Items(list), err
}

// reloadEncryption restarts the local API server with the keys on disk and says so on the Node.
func (s *Server) reloadEncryption(ctx context.Context) error {
	nodes, err := s.serverNodes(ctx)
	if err != nil {
		return err
	}
	var names []string
	for _, node := range nodes {
		names = append(names, kube.Text(node, "metadata", "name"))
	}
	sort.Strings(names)
	index := sort.SearchStrings(names, s.config.NodeName)
	if !every(ctx, time.Duration(index)*reloadSpacing) {
		return ctx.Err()
	}
	logging.Info("Restarting the API server with the new encryption keys")
	s.apiServer.Restart()
	if err = s.await(ctx, "the API server", s.kube.Ready); err != nil {
		return err
	}
	return s.await(ctx, "the node's annotation", s.markNode)
}

// handleRotateKeys adds a key everywhere, lets it encrypt everywhere, rewrites every secret, and drops the old keys.
// A rotation that was cut off is repeated as a whole: that is correct from every state in between.
func (s *Server) handleRotateKeys(request *http.Request) ([]byte, error) {
	if !s.config.SecretsEncryption {
		return nil, refuse(http.StatusBadRequest, "secrets encryption is disabled")
	}
	s.rotation.Lock()
	defer s.rotation.Unlock()
	// The rotation outlives an impatient client: half a rotation helps nobody.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(request.Context()), 3*rotationDeadline)
	defer cancel()
	add := func(c *bundle.EncryptionConfig) error { return c.AddKey(s.config.EncryptionProvider + "key") }
	if err := s.changeKeys(ctx, add); err != nil {
		return nil, err
	}
	promote := func(c *bundle.EncryptionConfig) error { c.PromoteLast(); return nil }
	if err := s.changeKeys(ctx, promote); err != nil {
		return nil, err
	}
	count, err := s.rewriteSecrets(ctx)
	if err != nil {
		return nil, err
	}
	drop := func(c *bundle.EncryptionConfig) error { c.DropOld(); return nil }
	if err = s.changeKeys(ctx, drop); err != nil {
		return nil, err
	}
	return []byte(fmt.Sprintf("keys rotated, reencryption finished (%d secrets)\n", count)), nil
}

// changeKeys changes the cluster's keys and waits until every server uses the change.
func (s *Server) changeKeys(ctx context.Context, change func(*bundle.EncryptionConfig) error) error {
	shared, revision, err := s.readBundle(ctx)
	if err != nil {
		return err
	}
	settings := &bundle.EncryptionConfig{}
	if err = json.Unmarshal(shared[bundle.Encryption], settings); err != nil {
		return err
	}
	if err = change(settings); err != nil {
		return err
	}
	if shared[bundle.Encryption], err = json.Marshal(settings); err != nil {
		return err
	}
	sealed, err := shared.Seal(s.token())
	if err != nil {
		return err
	}
	isStored, err := s.etcd.PutIf(ctx, bundle.Key(s.token()), sealed, revision)
	if err != nil {
		return err
	}
	if !isStored {
		return refuse(http.StatusConflict, "another server is changing the encryption keys")
	}
	ctx, cancel := context.WithTimeout(ctx, rotationDeadline)
	defer cancel()
	return s.await(ctx, "every server to use the new encryption keys", func(ctx context.Context) error {
		behind, err := s.serversBehind(ctx, settings.Digest())
		if err == nil && len(behind) > 0 {
			err = fmt.Errorf("still behind: %s", strings.Join(behind, ", "))
		}
		return err
	})
}

// rewriteSecrets stores every secret again, which encrypts it with the first key.
func (s *Server) rewriteSecrets(ctx context.Context) (count int, err error) {
	list, err := s.kube.Get(ctx, "/api/v1/secrets")
	if err != nil {
		return 0, err
	}
	for _, secret := range kube.Items(list) {
		secret["apiVersion"], secret["kind"] = "v1", "Secret"
		path := fmt.Sprintf("/api/v1/namespaces/%s/secrets/%s", kube.Text(secret, "metadata", "namespace"), kube.Text(secret, "metadata", "name"))
		_, err = s.kube.Update(ctx, path, secret)
		// Changed or deleted meanwhile: whoever did that wrote with the new key, or there is nothing left to write.
		if err != nil && !kube.Is(err, http.StatusConflict) && !kube.Is(err, http.StatusNotFound) {
			return count, err
		}
		count++
	}
	return count, nil
}
