//! Objects of ours are listed and watched one by one (`cluster/stored.rs`): one that cannot be read must not stop the rest.

use crate::source::{File, files, rust};
use crate::{none, one, refused};

/// Files that list or watch whole what is not of ours, or never nests.
const OTHERS: [(&str, &str); 9] = [
    ("src/cluster/stored.rs", "where it is done"),
    ("src/cluster/pod_events.rs", "Events"),
    ("src/cluster/egress.rs", "NetworkPolicies"),
    ("src/cluster/memories.rs", "metadata of Memories, which hold texts"),
    ("src/cli/mailbox.rs", "Events"),
    ("src/cli/version.rs", "Deployments"),
    ("src/cli/logs/pods.rs", "pods"),
    ("src/http/logs.rs", "pods"),
    ("src/dev/kubelet.rs", "Jobs and pods"),
];

const ROOMS: [&str; 6] = ["src/cluster/", "src/controllers", "src/gateway/", "src/http/", "src/cli/", "src/dev/"];

fn wholesale(files: &[File]) -> Vec<String> {
    let mut refusals = Vec::new();
    let asked = |file: &&File| {
        ROOMS.iter().any(|room| file.path.starts_with(room)) && OTHERS.iter().all(|(path, _)| *path != file.path)
    };
    for file in files.iter().filter(asked) {
        for call in [".list(&", ".list_metadata(", "watcher(", "DeserializeGuard"] {
            let found = file.code.match_indices(call).filter(|(at, _)| !file.in_tests(*at));
            // A method of its own by that name is none of the client's.
            let found = found.filter(|(at, _)| !file.code[..*at].ends_with("self"));
            refusals.extend(
                found.map(|(at, _)| {
                    format!("{}: reads all objects or none; go through cluster::stored", file.place(at))
                }),
            );
        }
    }
    refusals
}

#[test]
fn every_object_is_read_alone() {
    none(&wholesale(&files(rust)));
}

#[test]
fn lists_that_one_object_stops_are_refused() {
    for code in
        ["fn f() { api.list(&params) }", "fn f() { watcher(api, config) }", "fn f() { api.list_metadata(&params) }"]
    {
        refused(&wholesale(&one("src/cli/x.rs", code)), "go through cluster::stored");
        none(&wholesale(&one("src/cluster/stored.rs", code)));
    }
    none(&wholesale(&one("src/cli/x.rs", "fn f() { on.list(what, api, &params); self.list(&steps) }")));
}
