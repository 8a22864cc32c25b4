// Package access is how a host talks to a server's supervisor port.
//
// It promises that the token is sent only to a server whose CA the token pins (a plain token pins nothing, as in
// RKE2), and that a refusal (401, 403, 409) is told from a server that is not there yet.
package access

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"infraflows/lab/rke2/internal/token"
)

// Access is a verified way to one supervisor.
type Access struct {
	URL   string
	CA    []byte
	token token.Token
	http  *http.Client
}

// Refused is the supervisor's answer to a request that must not be repeated as it is.
type Refused struct {
	Status  int
	Message string
}

func (r *Refused) Error() string { return r.Message }

// IsRefused reports whether a server answered and said no.
func IsRefused(err error) bool {
	var refused *Refused
	return errors.As(err, &refused)
}

// Connect fetches the CA bundle, checks it against the token and returns a client that trusts only that bundle.
func Connect(ctx context.Context, url string, t token.Token) (*Access, error) {
	url = strings.TrimRight(url, "/")
	insecure := &http.Client{
		Timeout:   5 * time.Second,
		Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}},
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/cacerts", nil)
	if err != nil {
		return nil, err
	}
	answer, err := insecure.Do(request)
	if err != nil {
		return nil, fmt.Errorf("failed to get CA certs: %w", err)
	}
	defer answer.Body.Close()
	bundle, err := io.ReadAll(io.LimitReader(answer.Body, 1<<20))
	if err != nil || answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("failed to get CA certs: %s/cacerts answered %d", url, answer.StatusCode)
	}
	if err = t.CheckCA(bundle); err != nil {
		return nil, &Refused{Status: http.StatusForbidden, Message: err.Error()}
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(bundle) {
		return nil, fmt.Errorf("failed to get CA certs: %s/cacerts holds no certificate", url)
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}
	return &Access{URL: url, CA: bundle, token: t, http: &http.Client{Timeout: 5 * time.Minute, Transport: transport}}, nil
}

// Call sends a request with the token and returns the body of a 2xx answer.
func (a *Access) Call(ctx context.Context, method, path string, headers map[string]string, body []byte) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, method, a.URL+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	request.SetBasicAuth(a.token.User, a.token.Secret)
	for name, value := range headers {
		request.Header.Set(name, value)
	}
	answer, err := a.http.Do(request)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	content, err := io.ReadAll(answer.Body)
	if err != nil {
		return nil, err
	}
	if answer.StatusCode < 300 {
		return content, nil
	}
	message := fmt.Sprintf("%s%s: %s: %s", a.URL, path, answer.Status, strings.TrimSpace(string(content)))
	switch answer.StatusCode {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusConflict, http.StatusBadRequest:
		return nil, &Refused{Status: answer.StatusCode, Message: message}
	}
	return nil, errors.New(message)
}

// JSON sends and receives JSON.
func (a *Access) JSON(ctx context.Context, method, path string, request, response any) error {
	var body []byte
	var err error
	if request != nil {
		if body, err = json.Marshal(request); err != nil {
			return err
		}
	}
	content, err := a.Call(ctx, method, path, nil, body)
	if err != nil || response == nil {
		return err
	}
	return json.Unmarshal(content, response)
}
