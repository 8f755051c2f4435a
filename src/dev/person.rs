//! Who decides here: whoever sits at this machine. Nothing but this process reaches its API server, so what lies in a mailbox is
//! theirs; that is all the proof there is, and only this room can make it.

use futures::FutureExt;
use futures::future::BoxFuture;
use kube::Client;

use crate::api::StepRun;
use crate::cluster::Error;
use crate::cluster::guard::Proves;
use crate::decide::gate::Guard;

/// The proof. Its field is private: no other file makes one.
pub struct LocalPerson {
    stamp: String,
}

impl LocalPerson {
    /// Of whoever works with the folder that has this salt.
    pub(super) fn at(salt: &str) -> Self {
        Self { stamp: format!("local/{salt}") }
    }
}

impl Proves for LocalPerson {
    fn check<'a>(&'a self, _: &'a Client, _: &'a StepRun) -> BoxFuture<'a, Result<Guard, Error>> {
        async { Ok(Guard::Proven(self.stamp.clone())) }.boxed()
    }
}

/// What the local user is called.
pub fn name() -> String {
    let named = ["USER", "LOGNAME"].into_iter().find_map(|name| std::env::var(name).ok());
    // A name of the cluster's own counts as nobody's.
    named.filter(|name| !name.is_empty() && !name.starts_with("system:")).unwrap_or_else(|| "you".to_owned())
}
