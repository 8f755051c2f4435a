package main

import "strings"

// What a person expects the tools to say, from the state in words: dependsOn, sync waves and `wait: true` go on at Current and
// Healthy only, and stop at Failed and Degraded.
func expected(r row) said {
	var want said
	phase, rest, _ := strings.Cut(r.State, ", ")
	unseen := strings.Contains(r.State, "not looked at")
	switch r.Object.GetKind() {
	case "Workflow":
		want = ofRun(phase)
		if strings.Contains(rest, "a person is awaited") {
			want.Argo = "Suspended"
		}
		// What is over stays what it is in Argo CD; the others wait for the operator's look at the change.
		if unseen {
			want.KStatus, want.FluxEnd, want.FluxStarted = "InProgress", "InProgress", "InProgress"
			if phase != "Completed" && phase != "Failed" {
				want.Argo = "Progressing"
			}
		}
		if strings.Contains(rest, "being deleted") {
			want.KStatus, want.Argo = "Terminating", "Progressing"
		}
	case "StepRun":
		want = ofRun(phase)
		// Flux has no expressions for what Git does not hold.
		want.FluxEnd, want.FluxStarted = want.KStatus, want.KStatus
	case "Document":
		// A rejected one did its part: the next round makes another.
		want = said{KStatus: "Current", Argo: "Healthy", FluxEnd: "Current", FluxStarted: "Current"}
		if phase == "a draft" {
			want = said{KStatus: "InProgress", Argo: "Progressing", FluxEnd: "InProgress", FluxStarted: "InProgress"}
		}
	case "Memory":
		want = said{KStatus: "Current", Argo: "Healthy", FluxEnd: "Current", FluxStarted: "Current"}
	default:
		want = ofDefinition(phase, unseen)
		// A Trigger whose template is not there is no fault: Git may bring it later in the same sync.
		if strings.Contains(r.State, "TemplateNotFound") {
			want = said{KStatus: "InProgress", Argo: "Progressing", FluxEnd: "InProgress", FluxStarted: "InProgress"}
		}
	}
	return want
}

// The same for a person, who asks whether what follows may go on.
func (s said) forPeople() string {
	return map[string]string{"Healthy": "go on", "Degraded": "stop", "Suspended": "wait for somebody", "Progressing": "wait"}[s.Argo]
}

func ofRun(phase string) said {
	switch {
	case phase == "Completed" || phase == "Skipped":
		return said{KStatus: "Current", Argo: "Healthy", FluxEnd: "Current", FluxStarted: "Current"}
	// Cancelled: what depends on its result must not go on.
	case phase == "Failed" || phase == "Cancelled":
		return said{KStatus: "Failed", Argo: "Degraded", FluxEnd: "Failed", FluxStarted: "Failed"}
	case phase == "WaitingForAcceptance" || phase == "WaitingForInput":
		return said{KStatus: "InProgress", Argo: "Suspended", FluxEnd: "InProgress", FluxStarted: "Current"}
	// Suspended, or without its documents: it is not over, and whether it started nobody may count on.
	case phase == "Suspended" || phase == "WaitingForDocuments":
		return said{KStatus: "InProgress", Argo: "Suspended", FluxEnd: "InProgress", FluxStarted: "InProgress"}
	case phase == "Running":
		return said{KStatus: "InProgress", Argo: "Progressing", FluxEnd: "InProgress", FluxStarted: "Current"}
	default:
		return said{KStatus: "InProgress", Argo: "Progressing", FluxEnd: "InProgress", FluxStarted: "InProgress"}
	}
}

func ofDefinition(state string, unseen bool) said {
	switch {
	case unseen:
		return said{KStatus: "InProgress", Argo: "Progressing", FluxEnd: "InProgress", FluxStarted: "InProgress"}
	case state == "Ready":
		return said{KStatus: "Current", Argo: "Healthy", FluxEnd: "Current", FluxStarted: "Current"}
	// Steps run with it all the same; kstatus knows no other answer to Ready=Unknown.
	case strings.HasPrefix(state, "not known"):
		return said{KStatus: "InProgress", Argo: "Healthy", FluxEnd: "Current", FluxStarted: "Current"}
	default:
		return said{KStatus: "Failed", Argo: "Degraded", FluxEnd: "Failed", FluxStarted: "Failed"}
	}
}
