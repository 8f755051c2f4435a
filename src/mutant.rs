//! Deliberate bugs, one at a time, to see that the simulation and the model find them (`tests/mutants.rs`). Without the
//! feature `mutants`, which only that test has, `on` is false at compile time and nothing of this is in the program.

/// What is wrong, as the hook does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Mutant {
    /// A process with another id counts as the one that claimed.
    ClaimIdNotCompared = 1,
    /// A claim is written over whatever was written since the read.
    ClaimUnconditional,
    /// A claim that is there already is taken over.
    ClaimTakenOver,
    /// A process of an earlier attempt may claim and report.
    FenceNotAsked,
    ReportOfOldAttempt,
    ClaimOfOldAttempt,
    /// A pod that was lost after the start counts as never started.
    LostNotStarted,
    /// An attempt of unknown outcome is repeated without asking.
    UnknownRepeated,
    /// The Job's status decides, not the claim.
    VerdictFromJob,
    /// Jobs are deleted before the fence is stored.
    DeleteBeforeFence,
    /// Names of StepRuns do not depend on the run's UID.
    NameWithoutRun,
    /// A StepRun that was begun and is gone is made again.
    MadeAgain,
    /// What failed is forgotten in each pass.
    BudgetReset,
    /// What has ended goes on.
    NotAbsorbing,
    /// Decisions of earlier rounds count.
    EarlierRound,
    /// A decision counts that no policy proved.
    UnprovenDecision,
    /// An answer stays in the mailbox, and meets the next question.
    AnswerKept,
    /// The mailbox is emptied before what lay in it is latched.
    MailboxFirst,
    /// The list of a forEach is read anew.
    ListReadAgain,
    SlotsIgnored,
    /// A run that closes still launches.
    ClosingLaunches,
    /// Documents count before their gate accepts.
    DraftVisible,
    /// Steps of a graph start at once.
    NeedsIgnored,
    /// What needs a skipped step runs.
    SkipNotHandedOn,
    /// A suspended run launches.
    SuspendIgnored,
    /// A cancelled run launches.
    CancelStillLaunches,
    /// One item more may fail than `tolerate` says.
    ToleranceMiscounted,
    /// What comes after something that ran again is taken over from the run before.
    ReuseUnchecked,
    /// Attempts of an Agent start however many run.
    TurnNotAwaited,
    /// A Document is taken for the one that was pinned, whatever it holds.
    ContentUnchecked,
}

impl Mutant {
    pub const ALL: [Self; 30] = [
        Self::ClaimIdNotCompared,
        Self::ClaimUnconditional,
        Self::ClaimTakenOver,
        Self::FenceNotAsked,
        Self::ReportOfOldAttempt,
        Self::ClaimOfOldAttempt,
        Self::LostNotStarted,
        Self::UnknownRepeated,
        Self::VerdictFromJob,
        Self::DeleteBeforeFence,
        Self::NameWithoutRun,
        Self::MadeAgain,
        Self::BudgetReset,
        Self::NotAbsorbing,
        Self::EarlierRound,
        Self::UnprovenDecision,
        Self::AnswerKept,
        Self::MailboxFirst,
        Self::ListReadAgain,
        Self::SlotsIgnored,
        Self::ClosingLaunches,
        Self::DraftVisible,
        Self::NeedsIgnored,
        Self::SkipNotHandedOn,
        Self::SuspendIgnored,
        Self::CancelStillLaunches,
        Self::ToleranceMiscounted,
        Self::ReuseUnchecked,
        Self::TurnNotAwaited,
        Self::ContentUnchecked,
    ];
}

#[cfg(not(feature = "mutants"))]
pub const fn on(_: Mutant) -> bool {
    false
}

#[cfg(feature = "mutants")]
mod switch {
    use std::sync::atomic::{AtomicU8, Ordering};

    use super::Mutant;

    static ON: AtomicU8 = AtomicU8::new(0);

    pub fn on(mutant: Mutant) -> bool {
        ON.load(Ordering::Relaxed) == mutant as u8
    }

    /// Of the whole process.
    pub fn switch(to: Option<Mutant>) {
        ON.store(to.map_or(0, |mutant| mutant as u8), Ordering::Relaxed);
    }
}

#[cfg(feature = "mutants")]
pub use switch::{on, switch};
