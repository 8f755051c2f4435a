//! What the operator tells the shim, and what the agent gets to see of it.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::files;
use super::mask::Mask;
use crate::protocol::{AttemptRef, env, path};

/// For tries outside a pod: other places for the termination log and the token.
const TERMINATION_LOG: &str = "LOCKSTEP_TERMINATION_LOG";
const TOKEN_FILE: &str = "LOCKSTEP_TOKEN_FILE";
/// The agent does not see these.
const OWN: [&str; 7] =
    [env::GATEWAY, env::GATEWAY_CA, env::STEP_RUN, env::STEP_RUN_UID, env::SECRET_NAMES, TERMINATION_LOG, TOKEN_FILE];
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

#[derive(Debug)]
pub struct Settings {
    pub gateway: String,
    pub gateway_ca: Option<String>,
    pub attempt: AttemptRef,
    pub token: PathBuf,
    pub termination_log: PathBuf,
    pub input: PathBuf,
    pub output: PathBuf,
    pub work: PathBuf,
    pub mask: Mask,
}

impl Settings {
    pub fn read(get: impl Fn(&str) -> Option<OsString>, claim_id: String) -> Result<Self, String> {
        let text = |name: &str| get(name).and_then(|value| value.into_string().ok()).filter(|value| !value.is_empty());
        let needed = |name: &str| text(name).ok_or_else(|| format!("{name} is not set"));
        let step_run = needed(env::STEP_RUN)?;
        let (namespace, name) =
            step_run.split_once('/').ok_or_else(|| format!("{} is not NAMESPACE/NAME: {step_run}", env::STEP_RUN))?;
        let attempt = needed(env::ATTEMPT)?;
        let secrets = text(env::SECRET_NAMES).unwrap_or_default();
        let values = secrets.split(',').filter_map(|name| get(name.trim()).map(OsString::into_vec));
        let [input, output, work] = folders(&get);
        Ok(Self {
            gateway: needed(env::GATEWAY)?,
            gateway_ca: text(env::GATEWAY_CA),
            attempt: AttemptRef {
                namespace: namespace.to_owned(),
                step_run: name.to_owned(),
                uid: needed(env::STEP_RUN_UID)?,
                attempt: attempt.parse().map_err(|_| format!("{} is no number: {attempt}", env::ATTEMPT))?,
                id: claim_id,
            },
            token: place(&get, TOKEN_FILE, Path::new(path::TOKEN)),
            termination_log: termination_log(&get),
            input,
            output,
            work,
            mask: Mask::new(values),
        })
    }

    /// The command with the environment of the contract. `more` comes from the claim.
    pub fn command(&self, words: &[OsString], url: &str, more: &[(String, String)]) -> Command {
        let mut command = of_words(words);
        for (name, value) in more {
            if !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0') {
                command.env(name, value);
            }
        }
        surround(&mut command, [&self.input, &self.output, &self.work]);
        command.env(env::URL, url);
        command
    }
}

/// A command that the kubelet runs beside the agent's own: with the same folders, and without what is the shim's.
pub fn command_beside(words: &[OsString], get: impl Fn(&str) -> Option<OsString>) -> Command {
    let mut command = of_words(words);
    surround(&mut command, folders(&get).each_ref().map(PathBuf::as_path));
    command
}

/// Where the marks of the attempt stand.
pub fn termination_log(get: &impl Fn(&str) -> Option<OsString>) -> PathBuf {
    place(get, TERMINATION_LOG, Path::new(path::TERMINATION_LOG))
}

fn place(get: &impl Fn(&str) -> Option<OsString>, name: &str, default: &Path) -> PathBuf {
    get(name).filter(|value| !value.is_empty()).map_or_else(|| default.to_owned(), PathBuf::from)
}

/// Of input, output and work.
fn folders(get: &impl Fn(&str) -> Option<OsString>) -> [PathBuf; 3] {
    let root = Path::new(path::ROOT);
    [(env::IN, "in"), (env::OUT, "out"), (env::WORK, "work")].map(|(name, folder)| place(get, name, &root.join(folder)))
}

fn of_words(words: &[OsString]) -> Command {
    let (program, arguments) = match words {
        [program, arguments @ ..] => (program.clone(), arguments),
        [] => (OsString::new(), words),
    };
    let mut command = Command::new(program);
    command.args(arguments);
    command
}

/// What every command of an agent finds around itself: the folders of input, output and work, and places to write.
fn surround(command: &mut Command, [input, output, work]: [&Path; 3]) {
    for name in OWN {
        command.env_remove(name);
    }
    command.env(env::IN, input).env(env::OUT, output).env(env::WORK, work);
    let own = std::env::current_exe().unwrap_or_else(|_| path::SHIM.into());
    command.env("PATH", search_path(std::env::var_os("PATH"), &own));
    let usable = |name: &str| std::env::var_os(name).is_some_and(|folder| files::writable(Path::new(&folder)));
    if !usable("HOME") {
        command.env("HOME", work);
    }
    if !usable("TMPDIR") {
        if files::writable(Path::new("/tmp")) {
            command.env_remove("TMPDIR");
        } else {
            command.env("TMPDIR", work);
        }
    }
}

/// The shim's folder comes last, so that it hides nothing of the image.
fn search_path(given: Option<OsString>, own: &Path) -> OsString {
    let mut path = given.filter(|path| !path.is_empty()).unwrap_or_else(|| DEFAULT_PATH.into());
    if let Some(folder) = own.parent() {
        path.push(":");
        path.push(folder);
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(change: &[(&str, &str)]) -> Result<Settings, String> {
        let pod = [
            (env::GATEWAY, "https://gateway:8443"),
            (env::STEP_RUN, "shop/run-discovery-0123456789abcdef"),
            (env::STEP_RUN_UID, "uid-1"),
            (env::ATTEMPT, "2"),
            (env::SECRET_NAMES, "API_KEY, MISSING"),
            ("API_KEY", "hunter22"),
        ];
        let get = |name: &str| {
            change.iter().chain(&pod).find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
        };
        Settings::read(get, "id".to_owned())
    }

    #[test]
    fn reads_the_pods_environment() {
        let settings = read(&[]).unwrap();
        assert_eq!(settings.attempt.namespace, "shop");
        assert_eq!(settings.attempt.attempt, 2);
        assert_eq!(settings.input, Path::new("/lockstep/in"));
        assert_eq!(settings.token, Path::new(path::TOKEN));
        assert_eq!(settings.mask.text("key hunter22"), "key ***");
        assert!(read(&[(env::GATEWAY, "")]).unwrap_err().contains(env::GATEWAY));
        assert!(read(&[(env::STEP_RUN, "x")]).is_err());
        assert!(read(&[(env::ATTEMPT, "two")]).is_err());
    }

    #[test]
    fn the_command_sees_the_contract_and_not_the_shims_own() {
        let settings = read(&[]).unwrap();
        let more = [("SESSION_ID".to_owned(), "s".to_owned()), (env::URL.to_owned(), "evil".to_owned())];
        let command = settings.command(&["sh".into(), "-c".into()], "http://127.0.0.1:1/x", &more);
        let value = |name: &str| {
            command
                .get_envs()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| value.map(|value| value.to_string_lossy().into_owned()))
        };
        assert_eq!(value("SESSION_ID"), Some(Some("s".to_owned())));
        assert_eq!(value(env::URL), Some(Some("http://127.0.0.1:1/x".to_owned())));
        assert_eq!(value(env::IN), Some(Some("/lockstep/in".to_owned())));
        for own in OWN {
            assert_eq!(value(own), Some(None), "{own}");
        }
    }

    #[test]
    fn the_shim_comes_last_on_the_path() {
        let own = Path::new(path::SHIM);
        assert_eq!(search_path(Some("/bin".into()), own), "/bin:/lockstep/bin");
        assert_eq!(search_path(None, own), format!("{DEFAULT_PATH}:/lockstep/bin").as_str());
    }
}
