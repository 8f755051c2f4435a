//! The order of the steps of a list: what each needs, in which sequence they are looked at, whether there is one at all.

use crate::api::step::{Order, Step};

/// Indexes of the steps that must have ended before this one.
pub fn needed(steps: &[Step], order: Order, index: usize) -> Vec<usize> {
    match order {
        Order::Chain => index.checked_sub(1).into_iter().collect(),
        Order::Graph => {
            let needs = &steps[index].needs;
            needs.iter().filter_map(|name| steps.iter().position(|s| s.name == *name)).collect()
        }
    }
}

/// All indexes, each behind what it needs, otherwise in file order; steps of a circle are left out.
pub fn sequence(steps: &[Step], order: Order) -> Vec<usize> {
    if order == Order::Chain {
        return (0..steps.len()).collect();
    }
    let needs: Vec<Vec<usize>> = (0..steps.len()).map(|i| needed(steps, order, i)).collect();
    let mut placed = vec![false; steps.len()];
    let mut found = Vec::with_capacity(steps.len());
    while let Some(next) = (0..steps.len()).find(|i| !placed[*i] && needs[*i].iter().all(|n| placed[*n])) {
        placed[next] = true;
        found.push(next);
    }
    found
}

/// Indexes of all that must have ended before this one, directly or not.
pub fn ancestors(steps: &[Step], order: Order, index: usize) -> Vec<usize> {
    let mut found = Vec::new();
    let mut ahead = needed(steps, order, index);
    while let Some(next) = ahead.pop() {
        if !found.contains(&next) {
            found.push(next);
            ahead.extend(needed(steps, order, next));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(needs: &[(&str, &[&str])]) -> Vec<Step> {
        let step = |(name, needs): &(&str, &[&str])| Step {
            name: (*name).into(),
            needs: needs.iter().map(|n| (*n).into()).collect(),
            ..Step::default()
        };
        needs.iter().map(step).collect()
    }

    #[test]
    fn every_step_comes_after_what_it_needs() {
        let steps = graph(&[("d", &["b", "c"]), ("b", &["a"]), ("c", &["a"]), ("a", &[]), ("e", &[])]);
        assert_eq!(sequence(&steps, Order::Graph), [3, 1, 2, 0, 4]);
        assert_eq!(sequence(&steps, Order::Chain), [0, 1, 2, 3, 4]);
        let mut all = ancestors(&steps, Order::Graph, 0);
        all.sort_unstable();
        assert_eq!(all, [1, 2, 3]);
        assert_eq!(ancestors(&steps, Order::Chain, 2), [1, 0]);
    }

    #[test]
    fn a_circle_has_no_sequence() {
        let steps = graph(&[("a", &["b"]), ("b", &["a"]), ("c", &[])]);
        assert_eq!(sequence(&steps, Order::Graph), [2]);
    }
}
