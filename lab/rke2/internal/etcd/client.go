// Package etcd runs and changes the embedded etcd cluster through etcd's own HTTP gateway, with mutual TLS.
package etcd

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"infraflows/lab/rke2/internal/layout"
)

// Member is one member of the cluster; an unstarted one has no name.
type Member struct {
	ID         string   `json:"ID"`
	Name       string   `json:"name"`
	PeerURLs   []string `json:"peerURLs"`
	ClientURLs []string `json:"clientURLs"`
	IsLearner  bool     `json:"isLearner"`
}

// Client talks to the local member.
type Client struct {
	http     *http.Client
	endpoint string
}

// NewClient uses the host's etcd client certificate.
func NewClient(l layout.Layout) (*Client, error) {
	certificate, err := tls.LoadX509KeyPair(l.TLS("etcd", "client.crt"), l.TLS("etcd", "client.key"))
	if err != nil {
		return nil, err
	}
	authority, err := os.ReadFile(l.TLS("etcd", "server-ca.crt"))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(authority)
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{Certificates: []tls.Certificate{certificate}, RootCAs: pool, MinVersion: tls.VersionTLS12},
	}
	return &Client{http: &http.Client{Transport: transport, Timeout: 10 * time.Second}, endpoint: "https://127.0.0.1:2379"}, nil
}

// Error is etcd's own answer to a refused request.
type Error struct {
	Status  int
	Message string `json:"message"`
}

func (e *Error) Error() string { return "etcd: " + e.Message }

func (c *Client) call(ctx context.Context, path string, request, response any) error {
	body, err := json.Marshal(request)
	if err != nil {
		return err
	}
	call, err := http.NewRequestWithContext(ctx, http.MethodPost, c.endpoint+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	answer, err := c.http.Do(call)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	content, err := io.ReadAll(answer.Body)
	if err != nil {
		return err
	}
	if answer.StatusCode != http.StatusOK {
		failure := &Error{Status: answer.StatusCode}
		if json.Unmarshal(content, failure) != nil || failure.Message == "" {
			failure.Message = fmt.Sprintf("%s answered %d", path, answer.StatusCode)
		}
		return failure
	}
	if response == nil {
		return nil
	}
	return json.Unmarshal(content, response)
}

// Health fails until the cluster has a leader and serves linearizable reads. A member that is just starting holds a
// request until it gives up, so the probe gives up first.
func (c *Client) Health(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	_, _, err := c.Get(ctx, "/health-probe")
	return err
}

// Members lists the members with the cluster's agreement.
func (c *Client) Members(ctx context.Context) ([]Member, error) {
	var answer struct {
		Members []Member `json:"members"`
	}
	err := c.call(ctx, "/v3/cluster/member/list", map[string]bool{"linearizable": true}, &answer)
	return answer.Members, err
}

// LocalMembers lists what the local member knows; a learner can answer it too.
func (c *Client) LocalMembers(ctx context.Context) ([]Member, error) {
	var answer struct {
		Members []Member `json:"members"`
	}
	err := c.call(ctx, "/v3/cluster/member/list", map[string]bool{"linearizable": false}, &answer)
	return answer.Members, err
}

func (c *Client) addLearner(ctx context.Context, peerURL string) (Member, []Member, error) {
	var answer struct {
		Member  Member   `json:"member"`
		Members []Member `json:"members"`
	}
	request := map[string]any{"peerURLs": []string{peerURL}, "isLearner": true}
	err := c.call(ctx, "/v3/cluster/member/add", request, &answer)
	return answer.Member, answer.Members, err
}

func (c *Client) promote(ctx context.Context, id string) error {
	return c.call(ctx, "/v3/cluster/member/promote", map[string]string{"ID": id}, nil)
}

// Remove takes a member out of the cluster.
func (c *Client) Remove(ctx context.Context, id string) error {
	return c.call(ctx, "/v3/cluster/member/remove", map[string]string{"ID": id}, nil)
}

type keyValue struct {
	Key         []byte `json:"key"`
	Value       []byte `json:"value"`
	ModRevision string `json:"mod_revision"`
}

// Get returns a key's value and revision; a missing key has revision "".
func (c *Client) Get(ctx context.Context, key string) ([]byte, string, error) {
	var answer struct {
		Items []keyValue `json:"kvs"`
	}
	err := c.call(ctx, "/v3/kv/range", map[string]any{"key": []byte(key)}, &answer)
	if err != nil || len(answer.Items) == 0 {
		return nil, "", err
	}
	return answer.Items[0].Value, answer.Items[0].ModRevision, nil
}

// Keys lists the keys below a prefix.
func (c *Client) Keys(ctx context.Context, prefix string) ([]string, error) {
	var answer struct {
		Items []keyValue `json:"kvs"`
	}
	end := []byte(prefix)
	end[len(end)-1]++
	request := map[string]any{"key": []byte(prefix), "range_end": end, "keys_only": true}
	if err := c.call(ctx, "/v3/kv/range", request, &answer); err != nil {
		return nil, err
	}
	var result []string
	for _, item := range answer.Items {
		result = append(result, string(item.Key))
	}
	return result, nil
}

// PutIf writes a key only if its revision is still the given one ("" for absent); it reports whether it did.
func (c *Client) PutIf(ctx context.Context, key string, value []byte, revision string) (bool, error) {
	if revision == "" {
		revision = "0"
	}
	encoded := base64.StdEncoding.EncodeToString([]byte(key))
	request := map[string]any{
		"compare": []map[string]any{{"key": encoded, "target": "MOD", "result": "EQUAL", "mod_revision": revision}},
		"success": []map[string]any{{"request_put": map[string]any{"key": encoded, "value": value}}},
	}
	var answer struct {
		Succeeded bool `json:"succeeded"`
	}
	err := c.call(ctx, "/v3/kv/txn", request, &answer)
	return answer.Succeeded, err
}

// Delete removes a key; an absent one is a success.
func (c *Client) Delete(ctx context.Context, key string) error {
	return c.call(ctx, "/v3/kv/deleterange", map[string]any{"key": []byte(key)}, nil)
}
