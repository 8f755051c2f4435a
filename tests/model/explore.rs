//! What stateright's `eventually` cannot say: from every state that can be reached, faults or not, an end can be reached
//! without any further fault.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Instant;

use stateright::Model;

/// What is asked of a model.
pub trait Ends: Model {
    /// Whether the world could do without that action.
    fn is_fault(action: &Self::Action) -> bool;
    fn is_end(&self, state: &Self::State) -> bool;
}

/// The first state from which there is no way to an end.
pub fn stuck<M>(name: &str, model: &M) -> Option<M::State>
where
    M: Ends,
    M::State: Clone + Eq + Hash,
    M::Action: Clone,
{
    let begun = Instant::now();
    let mut states = model.init_states();
    let mut numbers: HashMap<M::State, u32> = HashMap::new();
    for (n, state) in (0..).zip(&states) {
        numbers.insert(state.clone(), n);
    }
    // Who comes to a state without a fault.
    let mut from: Vec<Vec<u32>> = vec![Vec::new(); states.len()];
    let (mut next, mut actions) = (0, Vec::new());
    while next < states.len() {
        let state = states[next].clone();
        let own = u32::try_from(next).expect("few");
        next += 1;
        if !model.within_boundary(&state) {
            continue;
        }
        model.actions(&state, &mut actions);
        for action in actions.drain(..) {
            let Some(to) = model.next_state(&state, action.clone()) else { continue };
            let number = *numbers.entry(to.clone()).or_insert_with(|| {
                states.push(to);
                from.push(Vec::new());
                u32::try_from(states.len() - 1).expect("few")
            });
            if !M::is_fault(&action) && number != own {
                from[number as usize].push(own);
            }
        }
    }
    let mut good: Vec<bool> = states.iter().map(|s| model.is_end(s)).collect();
    let mut open: Vec<u32> = (0..).zip(&good).filter(|(_, good)| **good).map(|(n, _)| n).collect();
    while let Some(number) = open.pop() {
        for before in &from[number as usize] {
            if !std::mem::replace(&mut good[*before as usize], true) {
                open.push(*before);
            }
        }
    }
    let ends = good.iter().filter(|good| **good).count();
    println!("{name}: {ends} of {} states lead to an end, {:.1} s", states.len(), begun.elapsed().as_secs_f64());
    good.iter().position(|good| !good).map(|lost| states[lost].clone())
}
