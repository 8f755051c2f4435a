//! What the decision about a Trigger needs: itself, its runs, and whether its template is there.

use std::sync::Arc;

use kube::ResourceExt;

use super::Error;
use super::evaluator::Kind;
use super::observe::Observer;
use super::world::trigger_key;
use crate::api::Trigger;
use crate::decide::trigger;

impl Observer {
    pub async fn trigger(&self, cached: Arc<Trigger>) -> Result<trigger::Observed, Error> {
        let trigger = self.fresh(cached).await?;
        let (namespace, name) = (trigger.namespace().unwrap_or_default(), trigger.name_any());
        let now = self.clock.now();
        let template = &trigger.spec.run.template_ref.name;
        let there = |name: &str| self.world.workflows.get(&namespace, name);
        Ok(trigger::Observed {
            on_the_way: trigger::on_the_way(&trigger, (&self.installation.account, &now), there),
            runs: self.world.workflows.under(&trigger_key(&namespace, &name)),
            template_exists: self.world.templates.get(&namespace, template).is_some(),
            template_fault: self.world.templates.fault(&namespace, template),
            installation: Arc::clone(&self.installation),
            evaluator: self.evaluator.for_pass(Kind::Trigger, &namespace, &name),
            now,
            trigger,
        })
    }
}
