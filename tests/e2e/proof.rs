//! That every attempt started once; and, where something failed, all that is known of it.

use std::fmt::Write as _;

use anyhow::{Result, bail, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::LogParams;
use kube::{Api, Client};

use crate::support::{PATIENCE, SYSTEM, Space, component, label};

impl Space {
    /// Every attempt started its command exactly once, and the run has exactly so many of them: read from the logs of
    /// all pods, each of which prints `STARTED <step> <attempt>` first.
    pub async fn assert_exactly_once(&self, run: &str, steps: usize) -> Result<()> {
        let step_runs = self.step_runs(run).await?;
        let scene = || async { self.scene(run).await };
        if step_runs.len() != steps {
            bail!("{} StepRuns, not {steps}{}", step_runs.len(), scene().await);
        }
        let pods = self.pods(run).await?;
        let jobs = self.jobs(run).await?;
        for step_run in &step_runs {
            let name = step_run.metadata.name.clone().unwrap_or_default();
            let status = step_run.status.clone().unwrap_or_default();
            if status.attempt != 1 || status.attempts.len() != 1 {
                bail!("{name}: attempt {}, {} in its history{}", status.attempt, status.attempts.len(), scene().await);
            }
            let own = jobs.iter().filter(|j| label(&j.metadata, "steprun") == name);
            ensure!(own.count() == 1, "{name}: not one Job");
            // A log may lag behind the report of what wrote it.
            let starts = self
                .until(&format!("{name} says that it started"), PATIENCE, Some(run), async || {
                    let mut starts = 0;
                    for pod in pods.iter().filter(|p| label(&p.metadata, "steprun") == name) {
                        let log = self.log(pod.metadata.name.as_deref().unwrap_or_default()).await?;
                        starts += log.lines().filter(|l| l.starts_with("STARTED ")).count();
                    }
                    Ok((starts > 0).then_some(starts))
                })
                .await?;
            if starts != 1 {
                bail!("{name}: {starts} starts of one attempt{}", scene().await);
            }
        }
        Ok(())
    }

    /// What there is of a run, and the operator's last words.
    pub async fn scene(&self, run: &str) -> String {
        let mut text = format!("\n--- {}/{run}", self.namespace);
        if let Ok(status) = self.status(run).await {
            let told =
                status.conditions.iter().map(|c| format!("{}={} {}: {}", c.type_, c.status, c.reason, c.message));
            let _ = write!(
                text,
                "\nphase {:?}, active {:?}\n  {}",
                status.phase,
                status.active_steps,
                told.collect::<Vec<_>>().join("\n  ")
            );
        }
        for step_run in self.step_runs(run).await.unwrap_or_default() {
            let status = serde_json::to_string(&step_run.status).unwrap_or_default();
            let name = step_run.metadata.name.unwrap_or_default();
            let _ = write!(text, "\nStepRun {name}: {status}");
        }
        for pod in self.pods(run).await.unwrap_or_default() {
            let name = pod.metadata.name.unwrap_or_default();
            let status = serde_json::to_string(&pod.status).unwrap_or_default();
            let _ = write!(text, "\nPod {name}: {}", clip(&status, 1500));
        }
        for component in ["operator", "gateway"] {
            let words = last_words(&self.admin, component).await;
            let _ = write!(text, "\n--- {component}\n{}", words.unwrap_or_else(|e| format!("{e:#}")));
        }
        text
    }
}

async fn last_words(client: &Client, name: &str) -> Result<String> {
    let api: Api<Pod> = Api::namespaced(client.clone(), SYSTEM);
    let options = LogParams { tail_lines: Some(15), ..LogParams::default() };
    let mut text = String::new();
    for pod in component(client, name).await? {
        let pod = pod.metadata.name.unwrap_or_default();
        text += &api.logs(&pod, &options).await.unwrap_or_default();
    }
    Ok(text)
}

fn clip(text: &str, chars: usize) -> String {
    text.chars().take(chars).collect()
}
