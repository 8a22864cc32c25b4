// Package token reads and writes RKE2's join tokens.
//
// A token is either plain (only the secret) or full: K10<sha256 of the cluster's CA bundle>::<user>:<secret>. A full
// token pins the CA, so that a joining host never gives its secret to a stranger.
package token

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
)

// Token is a parsed join token. CAHash is empty when the token was given plain.
type Token struct {
	CAHash string
	User   string
	Secret string
}

const (
	prefix     = "K10"
	ServerUser = "server"
	NodeUser   = "node"
)

// Parse accepts both forms; user is who a plain token stands for.
func Parse(text, user string) (Token, error) {
	text = strings.TrimSpace(text)
	if text == "" {
		return Token{}, fmt.Errorf("--token is required")
	}
	if !strings.HasPrefix(text, prefix) || !strings.Contains(text, "::") {
		if strings.ContainsAny(text, "\n\r") {
			return Token{}, fmt.Errorf("invalid token format: it has more than one line")
		}
		return Token{User: user, Secret: text}, nil
	}
	hash, credential, _ := strings.Cut(strings.TrimPrefix(text, prefix), "::")
	if raw, err := hex.DecodeString(hash); err != nil || len(raw) != sha256.Size {
		return Token{}, fmt.Errorf("invalid token CA hash length")
	}
	name, secret, found := strings.Cut(credential, ":")
	if !found || secret == "" || name == "" {
		return Token{}, fmt.Errorf("invalid token format: the user or the password is missing")
	}
	return Token{CAHash: strings.ToLower(hash), User: name, Secret: secret}, nil
}

// Hash is what a full token pins: the digest of the CA bundle as /cacerts serves it.
func Hash(caBundle []byte) string {
	digest := sha256.Sum256(caBundle)
	return hex.EncodeToString(digest[:])
}

// Format writes the full form.
func Format(caBundle []byte, user, secret string) string {
	return prefix + Hash(caBundle) + "::" + user + ":" + secret
}

// CheckCA refuses a CA bundle other than the one that the token pins.
func (t Token) CheckCA(caBundle []byte) error {
	if t.CAHash == "" || t.CAHash == Hash(caBundle) {
		return nil
	}
	return fmt.Errorf("token CA hash does not match the Cluster CA certificate hash: %s != %s", t.CAHash, Hash(caBundle))
}

// Generate returns a new random secret of 128 bits.
func Generate() (string, error) {
	raw := make([]byte, 16)
	if _, err := rand.Read(raw); err != nil {
		return "", err
	}
	return hex.EncodeToString(raw), nil
}
