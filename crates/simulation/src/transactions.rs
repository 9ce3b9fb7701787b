//! Transactions of dispatchers. Each runs some steps after its action was returned. It may be rolled back,
//! commit without the dispatcher getting the result, or run after the dispatcher has abandoned it.

use std::time::Duration;

use contracts::Timestamp;
use engine::dispatch::{Batch, Claim, ClaimSource, Event};
use engine::{AttemptResult, Effect, HeldAttempt, PollResult};
use rand::prelude::*;
use store::{ClaimResult, RowsRefused};

use crate::checks::Cause;
use crate::promise::{Broken, CLOCK_ERROR, Step};
use crate::work::{Fate, LateTransaction, Transaction, Work};
use crate::world::World;

/// Result of a transaction.
enum Answer {
    Claimed(ClaimResult),
    Recorded(Vec<Effect>),
    Recovered(Vec<(HeldAttempt, AttemptResult, Effect)>),
    HoldsForgotten,
    /// The database refused it. Nothing was committed.
    Refused(RowsRefused),
}

/// Maximum delay of a late transaction: the server ends stalled sessions.
const LATE: Duration = Duration::from_secs(40);

impl World<'_> {
    /// Draws the fate of the next transaction.
    pub(crate) fn fate(&mut self) -> Fate {
        if self.is_database_away() {
            return Fate::RolledBack;
        }
        match self.rng.random_range(0..100) {
            _ if self.is_calm => Fate::Committed,
            0..6 => Fate::RolledBack,
            6..12 => Fate::AnswerLost,
            12..17 => Fate::Late,
            _ => Fate::Committed,
        }
    }

    pub(crate) fn begin(&mut self, d: usize, work: Work) {
        let since = self.now;
        if let Some(process) = &mut self.dispatchers[d].process {
            process.transactions.push(Transaction { work, since });
        }
    }

    /// Runs a dispatcher's transaction.
    pub(crate) fn transact(&mut self, d: usize, index: usize) -> Step {
        let (mut fate, now) = (self.fate(), self.time_of(d));
        let Some(process) = &mut self.dispatchers[d].process else { return Ok(()) };
        let Transaction { work, .. } = process.transactions.swap_remove(index);
        let is_retry = matches!(&work, Work::Claim(claim) if claim.is_retry);
        if is_retry && fate == Fate::Committed && !self.is_calm && self.rng.random_bool(0.3) {
            // Failures cluster: the result of the retry is lost, too.
            fate = Fate::AnswerLost;
        }
        let answer = match fate {
            Fate::Committed | Fate::AnswerLost => Some(self.execute(d, &work, now, fate)?),
            Fate::RolledBack => {
                self.log(|_| format!("dispatcher {d} {}: {fate:?}", verb(&work)));
                None
            }
            Fate::Late => {
                self.log(|_| format!("dispatcher {d} {}: {fate:?}", verb(&work)));
                let began = self.now;
                self.late.push(LateTransaction { work: work.clone(), dispatcher: d, now, began });
                None
            }
        };
        match answer {
            Some(answer) if fate == Fate::Committed => self.answer(d, work, answer),
            _ => {
                self.leave_in_doubt(d, &work)?;
                // In some cases the result is lost because the host stalls.
                if fate != Fate::RolledBack && self.rng.random_bool(0.2) {
                    self.freeze(d);
                }
                Ok(())
            }
        }
    }

    /// Runs an abandoned transaction, or drops it.
    pub(crate) fn transact_late(&mut self, index: usize) -> Step {
        let LateTransaction { work, dispatcher, now, began } = self.late.swap_remove(index);
        // Drops it if its clock is wrong: it could do anything.
        let off = now.as_micros() - self.as_database_time(began).as_micros();
        let is_blurred = Duration::from_micros(off.unsigned_abs()) > CLOCK_ERROR;
        let is_lost = self.now > began + LATE || self.is_database_away() || is_blurred;
        if is_lost || self.rng.random_bool(0.1) {
            return Ok(());
        }
        self.count("a transaction run after its dispatcher had abandoned it");
        self.execute(dispatcher, &work, now, Fate::Late).map(drop)
    }

    /// Turns some transactions of an ended process into late ones.
    pub(crate) fn abandon(&mut self, d: usize, transactions: Vec<Transaction>) {
        let (began, now) = (self.now, self.time_of(d));
        for Transaction { work, .. } in transactions {
            if self.rng.random_bool(0.4) {
                self.late.push(LateTransaction { work, dispatcher: d, now, began });
            }
        }
    }

    fn execute(&mut self, d: usize, work: &Work, now: Timestamp, fate: Fate) -> Result<Answer, Broken> {
        let lease = self.shape.limits.lease;
        let answer = match work {
            Work::Claim(claim) => {
                let made = self.database.transaction(true, |tx| store::claim(tx, now, lease, claim));
                made.map(Answer::Claimed)
            }
            Work::Record(batch) => {
                let made = self.database.transaction(true, |tx| store::finish(tx, now, &batch.results));
                made.map(Answer::Recorded).map_err(RowsRefused::from)
            }
            Work::RecoverLeases(recovery) => {
                let mut recovery = recovery.clone();
                let (limit, is_reversed) = (recovery.limit, recovery.is_reversed);
                let stepped_over = std::mem::take(&mut recovery.stepped_over);
                let made = self.database.transaction(true, |tx| {
                    store::recover_leases(tx, now, limit, &stepped_over, is_reversed, |held| {
                        recovery.settle(held, now)
                    })
                });
                made.map(Answer::Recovered)
            }
            Work::ForgetHolds => {
                let made = self.database.transaction(true, |tx| store::forget_holds(tx, now));
                made.map(|_| Answer::HoldsForgotten).map_err(RowsRefused::from)
            }
        };
        let answer = answer.unwrap_or_else(Answer::Refused);
        self.log(|facts| {
            format!("dispatcher {d} {}: {fate:?}: {}", verb(work), summary(facts, work, &answer))
        });
        match (work, &answer) {
            (Work::Claim(claim), Answer::Claimed(result)) => {
                if !result.is_recovered {
                    let is_late = fate == Fate::Late;
                    self.note_claims(d, claim, &result.claimed, is_late)?;
                    if let (ClaimSource::Relay(plan), Some(poll), false) =
                        (&claim.source, &result.poll, is_late)
                    {
                        self.note_poll(d, plan, now, poll, &result.claimed)?;
                    }
                }
                self.check(&Cause::Claim(&result.claimed))?;
            }
            (Work::Record(batch), Answer::Recorded(effects)) => {
                if effects.contains(&Effect::Late { closed: true }) {
                    self.count("a late success that closes its delivery");
                }
                self.check(&Cause::Record { results: &batch.results, effects })?;
            }
            (Work::RecoverLeases(_), Answer::Recovered(recovered)) => {
                for _ in recovered {
                    self.count("an attempt lost");
                }
                self.check(&Cause::Recovery)?;
            }
            (Work::ForgetHolds, Answer::HoldsForgotten) => self.check(&Cause::Tidying { now })?,
            (_, Answer::Refused(RowsRefused { error, rows })) => {
                // Only broken rows may be refused. A mutant's constraint violation does not count as noticed.
                if !error.to_string().contains("the row is broken") {
                    return Err(Broken::Step(format!("{} of {} rows: {error}", verb(work), rows.len())));
                }
                self.count(match work {
                    Work::Claim(_) => "a claim refused by the database",
                    Work::Record(_) => "a result refused by the database",
                    _ => "a recovery refused by the database",
                });
            }
            _ => {}
        }
        Ok(answer)
    }

    /// Reports the result of a transaction to its dispatcher.
    fn answer(&mut self, d: usize, work: Work, answer: Answer) -> Step {
        let event = match (work, answer) {
            (Work::Claim(_), answer) => {
                if let Some(process) = &mut self.dispatchers[d].process {
                    process.doubtful_claim = None;
                }
                match answer {
                    Answer::Claimed(ClaimResult { claimed, is_recovered, poll }) => {
                        if is_recovered {
                            self.count("a claim whose commit came through unnoticed");
                        }
                        let tries =
                            claimed.windows(2).any(|two| two[0].held.claimed_at != two[1].held.claimed_at);
                        if tries {
                            self.count("a claim with several committed tries");
                        }
                        Event::Claimed { claimed, is_recovered, poll }
                    }
                    Answer::Refused(RowsRefused { rows, .. }) => Event::ClaimRefused { rows },
                    _ => return Ok(()),
                }
            }
            (Work::Record(Batch { id, .. }), Answer::Recorded(effects)) => Event::Recorded { id, effects },
            (Work::Record(Batch { id, .. }), Answer::Refused(refused)) => {
                Event::RecordRefused { id, is_violation: refused.error.is_violation() }
            }
            (Work::RecoverLeases(_), Answer::Recovered(recovered)) => {
                Event::LeasesRecovered { count: recovered.len() }
            }
            (Work::RecoverLeases(_), Answer::Refused(RowsRefused { rows, .. })) => {
                Event::RecoveryRefused { rows }
            }
            _ => return Ok(()),
        };
        self.report(d, event)
    }

    /// Reports to a dispatcher that the outcome of its transaction is unknown.
    fn leave_in_doubt(&mut self, d: usize, work: &Work) -> Step {
        let event = match work {
            Work::Claim(claim) => {
                let Some(process) = &mut self.dispatchers[d].process else { return Ok(()) };
                process.doubtful_claim = Some(claim.id);
                if process.is_stopping {
                    // It is not retried. If it has committed, its attempts are lost.
                    self.facts.abandon_claim(claim.id);
                }
                Event::ClaimUnknown
            }
            Work::Record(batch) => Event::RecordUnknown { id: batch.id },
            Work::RecoverLeases(_) => Event::RecoveryUnknown,
            Work::ForgetHolds => return Ok(()),
        };
        self.report(d, event)
    }
}

fn verb(work: &Work) -> &'static str {
    match work {
        Work::Claim(Claim { source: ClaimSource::Doorbells(_), .. }) => "claims by doorbells",
        Work::Claim(Claim { source: ClaimSource::Relay(plan), .. }) if !plan.targets.is_empty() => {
            "claims due deliveries of its targets"
        }
        Work::Claim(_) => "claims due deliveries",
        Work::Record(_) => "records",
        Work::RecoverLeases(_) => "recovers leases",
        Work::ForgetHolds => "forgets holds",
    }
}

fn summary(facts: &crate::facts::Facts, work: &Work, answer: &Answer) -> String {
    let lines: Vec<String> = match (work, answer) {
        (_, Answer::Claimed(result)) => {
            let name = |held: &HeldAttempt| {
                let probe = if held.is_probe { " as a probe" } else { "" };
                format!("{}/{}{probe}", facts.name(held.delivery_id), held.attempt)
            };
            let mut names: Vec<String> = result.claimed.iter().map(|claimed| name(&claimed.held)).collect();
            if result.is_recovered {
                names.push("(recovered)".into());
            }
            if let Some(poll) = result.poll.as_ref().filter(|poll| **poll != PollResult::default()) {
                names.push(format!("{poll:?}"));
            }
            names
        }
        (Work::Record(batch), Answer::Recorded(effects)) => {
            let line = |(result, effect): (&AttemptResult, &Effect)| {
                let (name, number) = (facts.name(result.delivery_id), result.record.number);
                format!("{name}/{number} {:?} {:?} {effect:?}", result.settlement, result.hold)
            };
            batch.results.iter().zip(effects).map(line).collect()
        }
        (_, Answer::Recovered(recovered)) => {
            let line = |(held, ..): &(HeldAttempt, AttemptResult, Effect)| {
                format!("{}/{}", facts.name(held.delivery_id), held.attempt)
            };
            recovered.iter().map(line).collect()
        }
        (_, Answer::Refused(refused)) => vec![format!("refused: {refused}")],
        _ => Vec::new(),
    };
    lines.join(", ")
}
