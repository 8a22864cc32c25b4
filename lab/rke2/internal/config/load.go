// Package config reads RKE2's configuration: config.yaml, config.yaml.d/*.yaml and the command line.
//
// It promises every problem at once and refuses keys that RKE2 does not have: a mistyped option that is silently
// skipped would let a lab pass what a site then misses.
package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"
)

// values holds each key's raw values; a scalar is a list of one.
type values map[string][]string

// Load reads the file, its .d directory and the arguments, in growing precedence.
func Load(path string, arguments []string) (*Config, error) {
	raw := values{}
	problems := readAll(path, raw)
	problems = append(problems, readArguments(arguments, raw)...)
	config, moreProblems := build(raw)
	problems = append(problems, moreProblems...)
	if len(problems) > 0 {
		return nil, errors.Join(problems...)
	}
	return config, nil
}

func readAll(path string, raw values) (problems []error) {
	files := []string{path}
	dropIns, _ := filepath.Glob(path + ".d/*.y*ml")
	sort.Strings(dropIns)
	for _, file := range append(files, dropIns...) {
		content, err := os.ReadFile(file)
		if os.IsNotExist(err) {
			continue
		}
		if err == nil {
			err = readYAML(content, raw)
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("%s: %w", file, err))
		}
	}
	return problems
}

func readYAML(content []byte, raw values) error {
	var document yaml.Node
	if err := yaml.Unmarshal(content, &document); err != nil {
		return err
	}
	if len(document.Content) == 0 {
		return nil
	}
	root := document.Content[0]
	if root.Kind != yaml.MappingNode {
		return fmt.Errorf("the document is not a mapping")
	}
	var problems []error
	for index := 0; index+1 < len(root.Content); index += 2 {
		if err := readEntry(root.Content[index].Value, root.Content[index+1], raw); err != nil {
			problems = append(problems, err)
		}
	}
	return errors.Join(problems...)
}

func readEntry(name string, node *yaml.Node, raw values) error {
	// "key+" appends to what an earlier file said.
	plain := strings.TrimSuffix(name, "+")
	if _, known := keys[plain]; !known {
		return fmt.Errorf("unknown option %q", name)
	}
	var list []string
	switch node.Kind {
	case yaml.ScalarNode:
		if node.Tag != "!!null" {
			list = []string{node.Value}
		}
	case yaml.SequenceNode:
		for _, item := range node.Content {
			if item.Kind != yaml.ScalarNode {
				return fmt.Errorf("option %q: every item must be a scalar", name)
			}
			list = append(list, item.Value)
		}
	default:
		return fmt.Errorf("option %q must be a scalar or a list", name)
	}
	if strings.HasSuffix(name, "+") {
		list = append(raw[plain], list...)
	}
	raw[plain] = list
	return nil
}

func readArguments(arguments []string, raw values) (problems []error) {
	given := values{}
	for len(arguments) > 0 {
		argument := arguments[0]
		arguments = arguments[1:]
		name, value, inline := strings.Cut(strings.TrimLeft(argument, "-"), "=")
		spec, known := keys[name]
		if !strings.HasPrefix(argument, "--") || !known {
			problems = append(problems, fmt.Errorf("flag provided but not defined: %s", argument))
			continue
		}
		if !inline && spec.kind == Flag {
			value = "true"
		} else if !inline {
			if len(arguments) == 0 {
				problems = append(problems, fmt.Errorf("flag needs an argument: %s", argument))
				break
			}
			value, arguments = arguments[0], arguments[1:]
		}
		given[name] = append(given[name], value)
	}
	for name, list := range given {
		raw[name] = list
	}
	return problems
}

func (v values) text(name, fallback string) string {
	if list := v[name]; len(list) > 0 {
		return list[len(list)-1]
	}
	return fallback
}

// list splits on commas where RKE2's flags do: not in *-arg, whose values carry commas of their own.
func (v values) list(name string) []string {
	var result []string
	for _, item := range v[name] {
		if strings.HasSuffix(name, "-arg") {
			result = append(result, item)
			continue
		}
		for _, part := range strings.Split(item, ",") {
			if part = strings.TrimSpace(part); part != "" {
				result = append(result, part)
			}
		}
	}
	return result
}

func (v values) flag(name string, fallback bool) (bool, error) {
	text := v.text(name, strconv.FormatBool(fallback))
	result, err := strconv.ParseBool(text)
	if err != nil {
		return fallback, fmt.Errorf("option %q must be true or false, not %q", name, text)
	}
	return result, nil
}

func (v values) number(name string, fallback int) (int, error) {
	text := v.text(name, strconv.Itoa(fallback))
	result, err := strconv.Atoi(text)
	if err != nil {
		return fallback, fmt.Errorf("option %q must be a number, not %q", name, text)
	}
	return result, nil
}
