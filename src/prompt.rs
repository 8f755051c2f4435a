//! What runs for an Agent that is only a prompt, as the agent's command below the shim: it tells a model what the attempt is about,
//! offers it Lockstep's calls as tools, and has its output checked until it is right. Of Lockstep it knows what every agent knows:
//! the files of its input, and the calls over HTTP.
//!
//! Read `model_input` (what the model is told), `chat` (the words of the protocol), `endpoint` (who answers, and what becomes of failures),
//! `calls` (the way to the shim), then `talk`.

mod calls;
mod chat;
mod endpoint;
mod model_input;
mod talk;

use std::path::PathBuf;
use std::process::ExitCode;

use crate::definition::agent::{API_KEY, CA_FILE};
use crate::protocol::env;
use calls::{Calls, Failed};
use endpoint::Endpoint;
use model_input::ModelInput;
use talk::{End, Talk};

/// The attempt failed, and the shim was told why.
const FAILED: u8 = 1;
/// It could not begin.
const UNABLE: u8 = 70;
/// Bytes. Shorter ones are no keys but placeholders, and stand in ordinary words; the shim masks no shorter ones either.
const SHORTEST: usize = 4;

/// What goes into the log, and to people, without the endpoint's key: whoever is asked with it may say it back.
struct Log {
    key: Option<String>,
}

impl Log {
    fn masked(&self, text: &str) -> String {
        let key = self.key.as_ref().filter(|key| key.len() >= SHORTEST);
        key.map_or_else(|| text.to_owned(), |key| text.replace(key.as_str(), "***"))
    }

    fn say(&self, text: &str) {
        use std::io::Write as _;
        // A closed stderr must not end the attempt.
        let _ = writeln!(std::io::stderr(), "prompt: {}", self.masked(text));
    }
}

pub fn main() -> ExitCode {
    let key = std::env::var(API_KEY).ok().map(|key| key.trim().to_owned()).filter(|key| !key.is_empty());
    let log = Log { key: key.clone() };
    let (input, calls) = match begin() {
        Ok(begun) => begun,
        Err(why) => {
            log.say(&why);
            return ExitCode::from(UNABLE);
        }
    };
    let authorities = std::env::var_os(CA_FILE).map(PathBuf::from);
    let ended = match Endpoint::new(&input.prompt.base_url, key, authorities.as_deref()) {
        Ok(endpoint) => Talk::new(&input, &endpoint, &calls, &log).map(Talk::hold),
        Err(why) => Ok(End::Failed { retryable: false, why }),
    };
    match ended {
        Ok(End::Done) => ExitCode::SUCCESS,
        Ok(End::Failed { retryable, why }) => {
            let why = log.masked(&why);
            log.say(&why);
            if let Err(lost) = calls.fail(&Failed { retryable, message: &why }) {
                log.say(&lost);
            }
            ExitCode::from(FAILED)
        }
        Err(why) => {
            log.say(&why);
            ExitCode::from(UNABLE)
        }
    }
}

fn begin() -> Result<(ModelInput, Calls), String> {
    let variable =
        |name: &str| std::env::var(name).map_err(|_| format!("{name} is not set: not in an agent's container"));
    let (input, output) = (PathBuf::from(variable(env::IN)?), PathBuf::from(variable(env::OUT)?));
    Ok((ModelInput::read(&input, output)?, Calls::new(variable(env::URL)?)))
}
