//! The repairs of a wrong output: how many there may be, and what the agent's repair command gets.

use std::ffi::OsString;

use serde::Serialize;

use crate::protocol::{Fault, Repair};

/// The repairs of one attempt, as its Agent allows them.
pub struct Repairs {
    how: Option<Repair>,
    done: u32,
}

/// One repair: a command to run, and the file that it reads.
#[derive(Debug, PartialEq)]
pub struct RepairCall {
    pub command: Vec<OsString>,
    /// The content of the file with the faults: a `RepairFile` as JSON.
    pub faults: Vec<u8>,
    /// A line for the log.
    pub log_line: String,
}

/// What the repair command reads.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RepairFile<'a> {
    repair: u32,
    max_repairs: u32,
    faults: &'a [Fault],
}

impl Repairs {
    pub fn new(how: Option<Repair>) -> Self {
        Self { how: how.filter(|how| !how.command.is_empty()), done: 0 }
    }

    pub fn are_left(&self) -> bool {
        self.how.as_ref().is_some_and(|how| self.done < how.most)
    }

    /// The next one, if there may be one.
    pub fn next(&mut self, faults: &[Fault]) -> Option<RepairCall> {
        let how = self.how.as_ref().filter(|how| self.done < how.most)?;
        self.done += 1;
        let lines: Vec<String> = faults.iter().map(ToString::to_string).collect();
        let file = RepairFile { repair: self.done, max_repairs: how.most, faults };
        Some(RepairCall {
            command: how.command.iter().map(OsString::from).collect(),
            faults: serde_json::to_vec_pretty(&file).unwrap_or_default(),
            log_line: format!("the output is wrong, repair {} of {}: {}", self.done, how.most, lines.join("; ")),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_wrong_output_is_told_as_often_as_the_agent_says() {
        let faults = [Fault { pointer: "/risks".to_owned(), message: "is no integer; it is \"two\"".to_owned() }];
        for (how, most) in [
            (None, 0),
            (Some(Repair { command: Vec::new(), most: 3 }), 0),
            (Some(Repair { command: vec!["mend".to_owned(), "-v".to_owned()], most: 2 }), 2),
        ] {
            let mut repairs = Repairs::new(how.clone());
            for number in 1..=most {
                assert!(repairs.are_left());
                let repair_call = repairs.next(&faults).expect("one more");
                assert_eq!(repair_call.command, ["mend", "-v"]);
                assert!(
                    repair_call.log_line.contains(&format!("repair {number} of 2: /risks: is no integer")),
                    "{}",
                    repair_call.log_line
                );
                let told: Value = serde_json::from_slice(&repair_call.faults).expect("JSON");
                assert_eq!(told, json!({"repair": number, "maxRepairs": 2, "faults": faults}));
            }
            assert!(!repairs.are_left() && repairs.next(&faults).is_none(), "{how:?}");
        }
    }
}
