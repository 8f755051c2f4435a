//! What runs here for an Agent: what the command line says, else the Agent's own command where this machine has it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::cli::fault::Fault;
use crate::cli::file::read;
use crate::definition::agent::CONTAINER;

/// Words to run, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    pub words: Vec<OsString>,
    pub folder: PathBuf,
}

/// What the command line says, by the Agent's name.
#[derive(Clone, Debug, Default)]
pub struct Commands {
    said: BTreeMap<String, Command>,
    /// Where this command was called.
    here: PathBuf,
}

impl Commands {
    pub fn read(lines: &[String], file: Option<&Path>, here: PathBuf) -> Result<Self, Fault> {
        let mut own = Self { said: BTreeMap::new(), here };
        if let Some(file) = file {
            let folder = own.here.join(file).parent().map(Path::to_owned).unwrap_or_default();
            for (number, line) in read(file)?.lines().enumerate() {
                let line = line.trim();
                if !line.is_empty() && !line.starts_with('#') {
                    let place = format!("{}:{}", file.display(), number + 1);
                    own.put(line, &folder, &place)?;
                }
            }
        }
        let here = own.here.clone();
        for line in lines {
            own.put(line, &here, "--agent")?;
        }
        Ok(own)
    }

    fn put(&mut self, line: &str, folder: &Path, place: &str) -> Result<(), Fault> {
        let known = line.split_once('=').map(|(name, line)| (name.trim(), line.trim()));
        let Some((name, line)) = known.filter(|(name, line)| !name.is_empty() && !line.is_empty()) else {
            return Err(Fault::usage(format!("{place}: {line:?} is not understood; write it as NAME=COMMAND")));
        };
        let words = ["sh", "-c", line].map(OsString::from).to_vec();
        self.said.insert(name.to_owned(), Command { words, folder: folder.to_owned() });
        Ok(())
    }

    /// The words behind `--`.
    pub fn say(&mut self, agent: &str, words: Vec<OsString>) {
        self.said.insert(agent.to_owned(), Command { words, folder: self.here.clone() });
    }

    /// What runs for an Agent whose own words these are.
    pub fn of(&self, agent: &str, own: Vec<String>) -> Command {
        let own = || Command { words: own.into_iter().map(OsString::from).collect(), folder: self.here.clone() };
        self.said.get(agent).cloned().unwrap_or_else(own)
    }

    /// Why not all of what a run names can run here.
    pub fn faults<'a>(
        &self,
        named: impl IntoIterator<Item = &'a String>,
        agents: &BTreeMap<String, Value>,
    ) -> Vec<String> {
        let of_strangers = self.said.keys().filter(|name| !agents.contains_key(*name));
        let strange = of_strangers.map(|name| format!("--agent {name}: no file has an Agent of that name"));
        let of_named = named.into_iter().filter_map(|name| match agents.get(name) {
            Some(agent) => self.fault(name, agent),
            None => Some(format!("the run names the Agent {name}, and no file has it; name its file with -f")),
        });
        strange.chain(of_named).collect()
    }

    /// Why nothing can run for an Agent.
    fn fault(&self, name: &str, agent: &Value) -> Option<String> {
        if agent.pointer("/spec/protocol").and_then(Value::as_str) == Some("None") {
            return Some(format!(
                "the Agent {name} has the protocol None: its container is run as it is, and here are no containers"
            ));
        }
        if agent.pointer("/spec/prompt").is_some() {
            return None;
        }
        let program = own_words(agent).into_iter().next().unwrap_or_default();
        let is_said = self.said.contains_key(name);
        (!is_said && !is_here(&program, &self.here)).then(|| {
            format!(
                "the Agent {name} runs {program}, which is not on this machine; say what runs here: --agent {name}='COMMAND', or a file of such lines with --agents"
            )
        })
    }
}

/// Command and arguments in the Agent's template.
fn own_words(agent: &Value) -> Vec<String> {
    let containers = agent.pointer("/spec/template/spec/containers").and_then(Value::as_array);
    let own = containers.into_iter().flatten().find(|container| container["name"] == CONTAINER);
    let words = |field: &str| own.and_then(|own| own[field].as_array()).cloned().unwrap_or_default();
    let all = words("command").into_iter().chain(words("args"));
    all.filter_map(|word| word.as_str().map(str::to_owned)).collect()
}

/// Whether a program can be found from that folder.
fn is_here(program: &str, folder: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    let runs = |path: PathBuf| path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    if program.contains('/') {
        return runs(folder.join(program));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    !program.is_empty() && std::env::split_paths(&path).any(|folder| runs(folder.join(program)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_said_counts_before_what_is_written() {
        let folder = std::env::temp_dir().join(format!("lockstep-command-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let file = folder.join("dev.agents");
        std::fs::write(&file, "# which\n\nplanner = python3 plan.py --x=1\nwriter=./write\n").expect("written");
        let read = |lines: &[&str]| {
            let lines: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
            Commands::read(&lines, Some(&file), "/here".into())
        };
        let commands = read(&["writer=node write.js"]).expect("they are read");
        let words = |command: Command| (command.words.last().cloned().expect("a word"), command.folder);
        assert_eq!(words(commands.of("planner", Vec::new())), ("python3 plan.py --x=1".into(), folder.clone()));
        assert_eq!(words(commands.of("writer", Vec::new())), ("node write.js".into(), "/here".into()));
        assert_eq!(words(commands.of("other", vec!["sh".into(), "x".into()])), ("x".into(), "/here".into()));
        let agents = [("planner".to_owned(), json!({}))].into();
        let faults = commands.faults(&["planner".to_owned(), "other".to_owned()], &agents);
        assert_eq!(faults.len(), 2, "{faults:?}");
        assert!(faults[0].contains("--agent writer") && faults[1].contains("the Agent other"), "{faults:?}");
        for line in ["writer", "=x", "writer="] {
            let fault = read(&[line]).expect_err("refused");
            assert!(fault.text.contains("write it as NAME=COMMAND"), "{}", fault.text);
        }
        std::fs::remove_dir_all(&folder).expect("removed");
    }

    #[test]
    fn a_command_that_is_not_here_is_told() {
        let commands = Commands::read(&["said=x".to_owned()], None, "/".into()).expect("read");
        let agent = |command: Value| {
            json!({"spec": {"template": {"spec": {"containers": [{"name": "other"},
            {"name": "agent", "command": command}]}}}})
        };
        for (name, command, fault) in [
            ("a", json!(["sh", "-c", "x"]), None),
            ("a", json!(["/bin/sh"]), None),
            ("a", json!(["bin/sh"]), None),
            ("a", json!(["/agents/planner"]), Some("--agent a='COMMAND'")),
            ("a", json!(["no-such-program"]), Some("which is not on this machine")),
            ("a", json!([]), Some("which is not on this machine")),
            ("said", json!(["/agents/planner"]), None),
        ] {
            let told = commands.fault(name, &agent(command.clone()));
            assert_eq!(told.is_some(), fault.is_some(), "{command}: {told:?}");
            assert!(told.unwrap_or_default().contains(fault.unwrap_or_default()), "{command}");
        }
        let bare = json!({"spec": {"protocol": "None"}});
        assert!(commands.fault("said", &bare).is_some_and(|fault| fault.contains("protocol None")));
    }
}
