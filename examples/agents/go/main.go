// Outlines a brief: its headings down to a depth. Standard library only.
package main

import (
	"bytes"
	"encoding/json"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

type result struct {
	Title    string `json:"title"`
	Headings int    `json:"headings"`
	Words    int    `json:"words"`
}

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}

func main() {
	in, out := os.Getenv("LOCKSTEP_IN"), os.Getenv("LOCKSTEP_OUT")
	var context struct {
		Documents  map[string]struct{ Path string }
		Parameters struct{ Depth int }
	}
	if err := json.Unmarshal(must(os.ReadFile(filepath.Join(in, "context.json"))), &context); err != nil {
		log.Fatal(err)
	}
	must(exec.Command("lockstep", "progress", "10", "reading the brief").Output())
	brief := string(must(os.ReadFile(filepath.Join(in, context.Documents["brief"].Path))))

	found := result{Words: len(strings.Fields(brief))}
	var lines strings.Builder
	for _, heading := range regexp.MustCompile(`(?m)^(#+) +(.*)$`).FindAllStringSubmatch(brief, -1) {
		if level := len(heading[1]); level <= max(context.Parameters.Depth, 1) {
			if found.Headings++; found.Title == "" {
				found.Title = heading[2]
			}
			lines.WriteString(strings.Repeat("  ", level-1) + "- " + heading[2] + "\n")
		}
	}
	if found.Headings == 0 { // No attempt will do better: it ends here.
		must(exec.Command("lockstep", "fail", "--unrecoverable", "the brief has no heading").Output())
	}
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	must(0, encoder.Encode(found))
	must(0, os.WriteFile(filepath.Join(out, "outline.md"), []byte(lines.String()), 0o644))
	must(0, os.WriteFile(filepath.Join(out, "result.json"), text.Bytes(), 0o644))
}
