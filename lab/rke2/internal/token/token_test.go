package token

import (
	"strings"
	"testing"
)

func TestAFullTokenSurvivesARoundTripAndPinsTheAuthority(t *testing.T) {
	bundle := []byte("-----BEGIN CERTIFICATE-----\n")
	parsed, err := Parse(Format(bundle, ServerUser, "s3:cret")+"\n", NodeUser)
	if err != nil || parsed.User != ServerUser || parsed.Secret != "s3:cret" {
		t.Fatalf("%+v, %v", parsed, err)
	}
	if err = parsed.CheckCA(bundle); err != nil {
		t.Fatal(err)
	}
	err = parsed.CheckCA([]byte("another"))
	if err == nil || !strings.Contains(err.Error(), "token CA hash does not match the Cluster CA certificate hash") {
		t.Fatalf("another authority: %v", err)
	}
}

func TestAPlainTokenStandsForTheGivenUserAndPinsNothing(t *testing.T) {
	parsed, err := Parse("secret", NodeUser)
	if err != nil || parsed != (Token{User: NodeUser, Secret: "secret"}) || parsed.CheckCA([]byte("any")) != nil {
		t.Fatalf("%+v, %v", parsed, err)
	}
}

func TestBadTokensAreRefused(t *testing.T) {
	hash := strings.Repeat("a", 64)
	for _, text := range []string{"", "  ", "two\nlines", "K10abc::server:x", "K10" + hash + "::server:", "K10" + hash + "::x"} {
		if parsed, err := Parse(text, NodeUser); err == nil {
			t.Errorf("%q was taken for %+v", text, parsed)
		}
	}
}
