//! The journal of the attempt as its agent keeps it. The claim has set it to BUSY before the agent runs, and what the attempt
//! came to is written with the report; so all that is left is that nobody goes back.

use std::sync::Mutex;

use serde::Deserialize;

use super::process::lock;

/// The states that an agent may report of its attempt.
#[derive(Deserialize, Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ReportedState {
    /// The work has begun; it has, with the claim
    Busy,
    /// The work is done; it counts once the command has ended with a valid output
    Completed,
    /// Ends the attempt as `fail --retryable` does
    Failed,
}

/// The journal's state in this attempt.
#[derive(Debug)]
pub struct Journal(Mutex<ReportedState>);

impl Default for Journal {
    fn default() -> Self {
        Self(Mutex::new(ReportedState::Busy))
    }
}

impl Journal {
    /// Goes on to a state, and says whether it is new; an error where it would go back.
    pub fn advance(&self, state: ReportedState) -> Result<bool, String> {
        let mut now = lock(&self.0);
        match (*now, state) {
            (known, state) if known == state => Ok(false),
            (ReportedState::Busy, _) | (ReportedState::Completed, ReportedState::Failed) => {
                *now = state;
                Ok(true)
            }
            (known, _) => Err(format!("the journal says {}, and never goes back to {}", known.text(), state.text())),
        }
    }
}

impl ReportedState {
    pub fn text(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::Completed => "completed",
            Self::Failed => "failed",
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    /// An agent that is told its calls by a prompt hears of all of them (docs/agents.md).
    #[test]
    fn the_sentence_for_a_prompt_names_every_state() {
        let page = include_str!("../../docs/agents.md");
        let sentence = page.lines().find(|line| line.starts_with("> Run `lockstep journal")).expect("the sentence");
        for state in ReportedState::value_variants() {
            assert!(sentence.contains(&format!("`lockstep journal {}", state.text())), "{state:?}: {sentence}");
        }
    }

    #[test]
    fn the_journal_goes_forward_only() {
        use ReportedState::{Busy, Completed, Failed};
        for (states, expected) in [
            (vec![Busy, Busy], vec![Ok(false), Ok(false)]),
            (vec![Completed, Completed, Busy], vec![Ok(true), Ok(false), Err("never goes back to busy")]),
            (vec![Completed, Failed], vec![Ok(true), Ok(true)]),
            (vec![Failed, Failed, Completed, Busy], vec![Ok(true), Ok(false), Err("completed"), Err("busy")]),
        ] {
            let journal = Journal::default();
            for (state, expected) in states.iter().zip(expected) {
                match (journal.advance(*state), expected) {
                    (Ok(said), Ok(expected)) => assert_eq!(said, expected, "{states:?}"),
                    (Err(said), Err(expected)) => assert!(said.contains(expected), "{states:?}: {said}"),
                    (said, _) => panic!("{states:?}: {said:?}"),
                }
            }
        }
    }
}
