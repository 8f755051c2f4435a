//! Every state of small worlds, with the real decisions in them: fence and claim, and the operators' lease; and every moment at
//! which a call of the real gateway can be overtaken.

#![expect(clippy::expect_used, clippy::fn_params_excessive_bools, clippy::panic, reason = "all of it is test")]

#[path = "../shim/attempt.rs"]
#[allow(dead_code, reason = "tests/shim.rs uses the rest")]
mod attempt;
#[path = "fence.rs"]
mod fence;
#[path = "lease.rs"]
mod lease;
#[path = "overtaken.rs"]
mod overtaken;

fn none(found: Option<String>) {
    if let Some(found) = found {
        panic!("{found}");
    }
}

#[test]
fn fence_and_claim_hold_in_every_state() {
    none(fence::find_violation());
}

#[test]
fn every_state_leads_to_an_end() {
    for world in &fence::WORLDS[..2] {
        none(fence::stuck(*world));
    }
}

#[test]
fn one_leads_in_every_state() {
    none(lease::find_violation(2));
}

#[test]
fn somebody_leads_again_after_every_state() {
    none(lease::stuck(2));
}

#[test]
fn nothing_is_written_of_an_attempt_that_is_over() {
    none(overtaken::find_violation());
}

#[test]
fn a_conflict_ends_no_attempt() {
    none(overtaken::find_lost_attempt());
}
