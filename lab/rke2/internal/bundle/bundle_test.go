package bundle

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"

	"infraflows/lab/rke2/internal/layout"
)

func TestABundleOpensOnlyWithItsToken(t *testing.T) {
	original := Bundle{"tls/server-ca.key": []byte("KEYTEXT"), Encryption: []byte("{}")}
	sealed, err := original.Seal("token")
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(sealed, []byte("KEYTEXT")) || strings.Contains(Key("token"), "token") {
		t.Fatal("the bundle or its key shows a secret")
	}
	opened, err := Open(sealed, "token")
	if err != nil || string(opened["tls/server-ca.key"]) != "KEYTEXT" {
		t.Fatalf("%v, %v", opened, err)
	}
	if _, err = Open(sealed, "another"); !errors.Is(err, ErrWrongToken) {
		t.Fatalf("another token: %v", err)
	}
	if _, err = Open([]byte("damaged"), "token"); err == nil || errors.Is(err, ErrWrongToken) {
		t.Fatalf("damaged data: %v", err)
	}
	again, err := original.Seal("token")
	if err != nil || bytes.Equal(again, sealed) {
		t.Fatal("two seals are equal: the nonce repeats")
	}
}

func TestABundleDoesNotLeaveTheServersDirectory(t *testing.T) {
	l := layout.New(t.TempDir())
	if err := (Bundle{"../../escape": []byte("x")}).Write(l); err == nil {
		t.Fatal("a path outside was written")
	}
}

func TestKeyRotationKeepsOldKeysUntilTheyAreDropped(t *testing.T) {
	for _, name := range []string{"aescbc", "secretbox"} {
		c, err := NewEncryptionConfig(name)
		if err != nil {
			t.Fatal(err)
		}
		first, digest := c.Keys()[0], c.Digest()
		if err = c.AddKey(name + "key"); err != nil {
			t.Fatal(err)
		}
		if c.Keys()[0] != first || len(c.Keys()) != 2 {
			t.Fatal("a new key must only decrypt at first")
		}
		c.PromoteLast()
		if c.Keys()[1] != first {
			t.Fatal("the old key must still decrypt")
		}
		c.DropOld()
		if len(c.Keys()) != 1 || c.Keys()[0] == first || c.Digest() == digest {
			t.Fatal("the old key is still there")
		}
		l := layout.New(t.TempDir())
		if err = c.Write(l); err != nil {
			t.Fatal(err)
		}
		read, err := ReadEncryptionConfig(l)
		if err != nil || read.Digest() != c.Digest() {
			t.Fatalf("read back: %v", err)
		}
		if status, err := os.Stat(l.EncryptionConfig()); err != nil || status.Mode().Perm() != 0o600 {
			t.Fatal("the keys are readable by others")
		}
	}
	if _, err := NewEncryptionConfig("identity"); err == nil {
		t.Fatal("an unknown provider was taken")
	}
}
