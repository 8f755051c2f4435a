//! The end of a container that was left as it is (protocol None): the node says how it ended, in the pod's status; its sidecar
//! says what lay in the file, if there is one. Both together are what a shim would have reported.

use k8s_openapi::api::core::v1::ContainerStateTerminated;

use super::attempt::Asked;
use super::auth::{self, AttemptCall, AttemptPod, Caller};
use super::refusal::{Refusal, Result};
use super::{Gateway, judge};
use crate::protocol::{ContainerEnded, EndedRequest, Ending, Output, ReportRequest};

const INVALID_OUTPUT: i32 = 65;

/// What the container has left, for its own sidecar: that masks it, and sends it with the report.
pub async fn left(gateway: &Gateway, caller: &Caller, request: Asked<EndedRequest>) -> Result<ContainerEnded> {
    let pod = auth::pod(&gateway.client, caller, &request.attempt, AttemptCall::Report).await?;
    Ok(ContainerEnded { message: how(&pod)?.message.clone() })
}

/// The sidecar hears of the end before the API server does, and comes again.
fn how(pod: &AttemptPod) -> Result<&ContainerStateTerminated> {
    pod.ended.as_ref().ok_or_else(|| Refusal::unavailable("the end of the agent's container is not known yet"))
}

/// The report as a shim would have sent it.
pub fn settled(request: ReportRequest, pod: &AttemptPod) -> Result<ReportRequest> {
    let Ending::Attended { has_file, fault } = request.ending else { return Ok(request) };
    let ended = how(pod)?;
    // A sidecar that has Secrets to mask sends the message itself.
    let message = request.output.result.clone().or_else(|| ended.message.clone()).unwrap_or_default();
    let output = match (has_file, judge::parse(&message)) {
        (true, _) => request.output,
        (false, Ok(_)) => Output { result: Some(message), masked: request.output.masked, ..Output::default() },
        (false, Err(_)) => Output::default(),
    };
    let ending = match (ended.exit_code, fault) {
        (0, Some(message)) => Ending::Failed { retryable: true, message, code: INVALID_OUTPUT },
        (code, _) => Ending::Exited { code, signal: pod.pod_disrupted.then_some(15), cause: pod.out_of_memory.clone() },
    };
    Ok(ReportRequest { ending, output, ..request })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_that_is_masked_stays_masked() {
        let masked = "{\"key\":\"***\"}".to_owned();
        let request = ReportRequest {
            ending: Ending::Attended { has_file: false, fault: None },
            output: Output { result: Some(masked.clone()), ..Output::default() },
            log_tail: String::new(),
            usage: None,
        };
        let message = Some("{\"key\":\"hunter22\"}".to_owned());
        let ended = ContainerStateTerminated { message, ..ContainerStateTerminated::default() };
        let pod = AttemptPod { ended: Some(ended), ..AttemptPod::default() };
        assert_eq!(settled(request, &pod).expect("settled").output.result, Some(masked));
    }

    #[test]
    fn the_node_says_how_it_ended_and_the_sidecar_what_it_left() {
        let request = |has_file: bool, fault: Option<&str>| ReportRequest {
            ending: Ending::Attended { has_file, fault: fault.map(str::to_owned) },
            output: Output { result: has_file.then(|| "7".to_owned()), ..Output::default() },
            log_tail: String::new(),
            usage: None,
        };
        let ended = |code: i32, message: &str, reason: &str| ContainerStateTerminated {
            exit_code: code,
            message: Some(message.to_owned()).filter(|m| !m.is_empty()),
            reason: Some(reason.to_owned()),
            ..ContainerStateTerminated::default()
        };
        let exited = |code: i32, signal: Option<i32>, cause: Option<&str>| Ending::Exited {
            code,
            signal,
            cause: cause.map(str::to_owned),
        };
        for (what, request, ended, disrupted, ending, result) in [
            ("a file", request(true, None), ended(0, "{}", "Completed"), false, exited(0, None, None), Some("7")),
            (
                "a message",
                request(false, None),
                ended(0, "{\"n\":1}", "Completed"),
                false,
                exited(0, None, None),
                Some("{\"n\":1}"),
            ),
            ("words", request(false, None), ended(0, "all is well", "Completed"), false, exited(0, None, None), None),
            ("nothing", request(false, None), ended(0, "", "Completed"), false, exited(0, None, None), None),
            ("a failure", request(true, None), ended(3, "", "Error"), false, exited(3, None, None), Some("7")),
            ("taken away", request(false, None), ended(143, "", "Error"), true, exited(143, Some(15), None), None),
            (
                "memory",
                request(false, None),
                ended(137, "", "OOMKilled"),
                false,
                exited(137, None, Some("out of memory, limit 64Mi")),
                None,
            ),
            (
                "unreadable",
                request(false, Some("/out/r is a symbolic link")),
                ended(0, "", "Completed"),
                false,
                Ending::Failed { retryable: true, message: "/out/r is a symbolic link".to_owned(), code: 65 },
                None,
            ),
            (
                "unreadable, and failed",
                request(false, Some("no")),
                ended(2, "", "Error"),
                false,
                exited(2, None, None),
                None,
            ),
        ] {
            let out_of_memory =
                (ended.reason.as_deref() == Some("OOMKilled")).then(|| "out of memory, limit 64Mi".to_owned());
            let pod =
                AttemptPod { pod_disrupted: disrupted, ended: Some(ended), out_of_memory, ..AttemptPod::default() };
            let settled = settled(request, &pod).expect("settled");
            assert_eq!((settled.ending, settled.output.result.as_deref()), (ending, result), "{what}");
        }
        let running = AttemptPod { pod_disrupted: true, ..AttemptPod::default() };
        assert!(settled(request(true, None), &running).is_err_and(|refusal| refusal.message.contains("not known yet")));
        let of_a_shim = ReportRequest { ending: Ending::exited(0), ..request(true, None) };
        assert_eq!(settled(of_a_shim, &running).expect("as it came").ending, Ending::exited(0));
    }
}
