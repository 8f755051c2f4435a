//! Lockstep as its users have it: installed in a real cluster, with agents in real pods. KUBECONFIG names the cluster,
//! with rights of an administrator; the image of the example agents is in its node:
//!
//!     make install demo-agents language-agents && eval "$(hack/devcluster/devcluster env)"
//!     RUST_TEST_THREADS=4 cargo test --test e2e

mod ask;
#[path = "../dev/authority.rs"]
#[allow(clippy::expect_used, reason = "a thread of a test ends by panicking")]
mod authority;
mod bare;
mod causes;
mod claims;
mod contexts;
mod courses;
mod faults;
mod flow;
mod hostile;
mod http;
mod languages;
mod memory;
#[path = "../dev/model.rs"]
#[allow(
    dead_code,
    clippy::expect_used,
    reason = "tests/dev has answers of every kind; a thread of a test ends by panicking"
)]
mod model;
mod papers;
mod places;
mod prompt;
mod proof;
mod restart;
mod rules;
mod support;
mod talk;
mod tools;
mod triggers;
mod verbs;
mod waits;
