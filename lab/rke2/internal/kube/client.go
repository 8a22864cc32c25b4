// Package kube speaks to the API server in plain REST.
//
// It promises Kubernetes' own errors, typed by their HTTP status; it brings no client library, because the few
// objects that RKE2 itself touches do not need one.
package kube

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
	"os"
	"time"
)

// Object is any Kubernetes object.
type Object = map[string]any

// Client is one identity at one API server.
type Client struct {
	http   *http.Client
	server string
}

// Credentials are the three files of an identity.
type Credentials struct{ Authority, Certificate, Key string }

// NewClient makes a client; certificates are read once.
func NewClient(server string, files Credentials) (*Client, error) {
	certificate, err := tls.LoadX509KeyPair(files.Certificate, files.Key)
	if err != nil {
		return nil, err
	}
	authority, err := os.ReadFile(files.Authority)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(authority)
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{Certificates: []tls.Certificate{certificate}, RootCAs: pool, MinVersion: tls.VersionTLS12},
		IdleConnTimeout: 30 * time.Second,
	}
	return &Client{http: &http.Client{Transport: transport}, server: server}, nil
}

// Error is a refused request.
type Error struct {
	Status  int
	Message string
}

func (e *Error) Error() string { return e.Message }

// Is reports whether the error is the API server's with that status.
func Is(err error, status int) bool {
	var failure *Error
	return errors.As(err, &failure) && failure.Status == status
}

const (
	Merge     = "application/merge-patch+json"
	Strategic = "application/strategic-merge-patch+json"
	Apply     = "application/apply-patch+yaml"
	plain     = "application/json"
)

func (c *Client) open(ctx context.Context, method, path, contentType string, body any) (*http.Response, error) {
	var reader io.Reader
	if body != nil {
		content, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		reader = bytes.NewReader(content)
	}
	request, err := http.NewRequestWithContext(ctx, method, c.server+path, reader)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", contentType)
	request.Header.Set("User-Agent", "rke2")
	answer, err := c.http.Do(request)
	if err != nil {
		return nil, err
	}
	if answer.StatusCode < 300 {
		return answer, nil
	}
	defer answer.Body.Close()
	content, _ := io.ReadAll(io.LimitReader(answer.Body, 1<<16))
	var status struct {
		Message string `json:"message"`
	}
	if json.Unmarshal(content, &status) != nil || status.Message == "" {
		status.Message = fmt.Sprintf("%s %s: HTTP %d", method, path, answer.StatusCode)
	}
	return nil, &Error{Status: answer.StatusCode, Message: status.Message}
}

func (c *Client) do(ctx context.Context, method, path, contentType string, body any) (Object, error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	answer, err := c.open(ctx, method, path, contentType, body)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	result := Object{}
	return result, json.NewDecoder(answer.Body).Decode(&result)
}

func (c *Client) Get(ctx context.Context, path string) (Object, error) {
	return c.do(ctx, http.MethodGet, path, plain, nil)
}

func (c *Client) Create(ctx context.Context, path string, object Object) (Object, error) {
	return c.do(ctx, http.MethodPost, path, plain, object)
}

func (c *Client) Update(ctx context.Context, path string, object Object) (Object, error) {
	return c.do(ctx, http.MethodPut, path, plain, object)
}

func (c *Client) Patch(ctx context.Context, path, kind string, object Object) (Object, error) {
	return c.do(ctx, http.MethodPatch, path, kind, object)
}

// Delete removes an object; an absent one is a success.
func (c *Client) Delete(ctx context.Context, path string) error {
	_, err := c.do(ctx, http.MethodDelete, path, plain, nil)
	if Is(err, http.StatusNotFound) {
		return nil
	}
	return err
}

// Ready fails until the API server says that it is ready.
func (c *Client) Ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	answer, err := c.open(ctx, http.MethodGet, "/readyz", plain, nil)
	if err != nil {
		return err
	}
	_, _ = io.Copy(io.Discard, answer.Body)
	return answer.Body.Close()
}

// Event is one change of a watched list.
type Event struct {
	Type   string `json:"type"`
	Object Object `json:"object"`
}

// Watch calls back for each event until the stream ends.
func (c *Client) Watch(ctx context.Context, path string, callback func(Event)) error {
	answer, err := c.open(ctx, http.MethodGet, path, plain, nil)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	decoder := json.NewDecoder(answer.Body)
	for {
		var event Event
		if err = decoder.Decode(&event); err != nil {
			return err
		}
		callback(event)
	}
}

// Text digs a string out of an object; "" when it is not there.
func Text(object Object, path ...string) string {
	var current any = object
	for _, name := range path {
		fields, isObject := current.(map[string]any)
		if !isObject {
			return ""
		}
		current = fields[name]
	}
	text, _ := current.(string)
	return text
}

// Items returns the objects of a list.
func Items(list Object) []Object {
	raw, _ := list["items"].([]any)
	var result []Object
	for _, item := range raw {
		if object, isObject := item.(map[string]any); isObject {
			result = append(result, object)
		}
	}
	return result
}
