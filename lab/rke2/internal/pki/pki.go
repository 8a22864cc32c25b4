// Package pki makes the certificate authorities and the leaf certificates of a cluster, with RKE2's file names.
//
// It promises that an authority is made once and never replaced, and that a leaf is renewed when it nears its end or
// when its names change. Keys are ECDSA P-256 and files 0600.
package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"sort"
	"strings"
	"time"

	"infraflows/lab/rke2/internal/layout"
)

const (
	authorityLife = 10 * 365 * 24 * time.Hour
	leafLife      = 365 * 24 * time.Hour
	// RenewBefore is RKE2's window: a leaf that ends sooner is renewed when the service starts.
	RenewBefore = 120 * 24 * time.Hour
)

// Authority is a certificate authority with its key.
type Authority struct {
	Certificate *x509.Certificate
	PEM         []byte
	key         crypto.Signer
}

// Leaf says what a certificate is for.
type Leaf struct {
	CommonName string
	Groups     []string
	Names      []string // host names and addresses
	IsServer   bool
	IsClient   bool
}

// NewKey makes a private key and its PEM form.
func NewKey() (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), nil
}

// EnsureAuthority loads path.crt and path.key, and makes them when neither is there.
func EnsureAuthority(path, commonName string) (*Authority, error) {
	authority, err := LoadAuthority(path)
	if !errors.Is(err, os.ErrNotExist) {
		return authority, err
	}
	key, keyPEM, err := NewKey()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: fmt.Sprintf("%s@%d", commonName, time.Now().Unix())},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(authorityLife), IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	// The key goes first: a certificate without its key would be taken for a finished authority.
	if err = layout.WriteAtomic(path+".key", keyPEM, 0o600); err != nil {
		return nil, err
	}
	certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if err = layout.WriteAtomic(path+".crt", certificate, 0o644); err != nil {
		return nil, err
	}
	return LoadAuthority(path)
}

// LoadAuthority reads path.crt and path.key.
func LoadAuthority(path string) (*Authority, error) {
	certificatePEM, err := os.ReadFile(path + ".crt")
	if err != nil {
		return nil, err
	}
	keyPEM, err := os.ReadFile(path + ".key")
	if err != nil {
		return nil, err
	}
	certificate, err := ParseCertificate(certificatePEM)
	if err != nil {
		return nil, fmt.Errorf("%s.crt: %w", path, err)
	}
	block, _ := pem.Decode(keyPEM)
	if block == nil {
		return nil, fmt.Errorf("%s.key: not PEM", path)
	}
	key, err := x509.ParseECPrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s.key: %w", path, err)
	}
	return &Authority{Certificate: certificate, PEM: certificatePEM, key: key}, nil
}

// ParseCertificate reads the first certificate of a PEM text.
func ParseCertificate(text []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, fmt.Errorf("no certificate in PEM form")
	}
	return x509.ParseCertificate(block.Bytes)
}

// Sign issues a certificate for somebody's public key and appends the authority, as RKE2 does.
func (a *Authority) Sign(leaf Leaf, public crypto.PublicKey) ([]byte, error) {
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: leaf.CommonName, Organization: leaf.Groups},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(leafLife),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
	}
	if leaf.IsServer {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	if leaf.IsClient {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
	}
	for _, name := range leaf.Names {
		if address := net.ParseIP(name); address != nil {
			template.IPAddresses = append(template.IPAddresses, address)
		} else if name != "" {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.Certificate, public, a.key)
	if err != nil {
		return nil, err
	}
	return append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), a.PEM...), nil
}

// EnsureLeaf keeps path.crt and path.key valid for the leaf; it reports whether it wrote them.
func (a *Authority) EnsureLeaf(path string, leaf Leaf) (bool, error) {
	if a.isCurrent(path, leaf) {
		return false, nil
	}
	key, keyPEM, err := NewKey()
	if err != nil {
		return false, err
	}
	certificate, err := a.Sign(leaf, key.Public())
	if err != nil {
		return false, err
	}
	// Without its certificate the new key is not current, so a kill in between is repaired by the next start.
	if err = os.Remove(path + ".crt"); err != nil && !os.IsNotExist(err) {
		return false, err
	}
	if err = layout.WriteAtomic(path+".key", keyPEM, 0o600); err != nil {
		return false, err
	}
	return true, layout.WriteAtomic(path+".crt", certificate, 0o600)
}

func (a *Authority) isCurrent(path string, leaf Leaf) bool {
	text, err := os.ReadFile(path + ".crt")
	if err != nil {
		return false
	}
	if _, err = os.Stat(path + ".key"); err != nil {
		return false
	}
	certificate, err := ParseCertificate(text)
	if err != nil || time.Until(certificate.NotAfter) < RenewBefore {
		return false
	}
	isOurs := bytes.Equal(certificate.RawIssuer, a.Certificate.RawSubject) &&
		certificate.CheckSignatureFrom(a.Certificate) == nil
	return isOurs && certificate.Subject.CommonName == leaf.CommonName &&
		equal(certificate.Subject.Organization, leaf.Groups) && equal(namesOf(certificate), leaf.Names)
}

func namesOf(certificate *x509.Certificate) []string {
	names := append([]string{}, certificate.DNSNames...)
	for _, address := range certificate.IPAddresses {
		names = append(names, address.String())
	}
	return names
}

func equal(left, right []string) bool {
	left, right = append([]string{}, left...), append([]string{}, right...)
	sort.Strings(left)
	sort.Strings(right)
	return strings.Join(left, "\x00") == strings.Join(right, "\x00")
}

func serial() *big.Int {
	number, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		panic("the system has no randomness: " + err.Error())
	}
	return number
}
