//! What a write tells when it is done: the differences, the generation, the slots that moved.

use super::context::Context;
use super::exit::Failure;
use crate::api::types::ApplyResult;

pub(super) fn print(context: &Context, result: &ApplyResult) -> Result<(), Failure> {
    context.print(result, |result, page| {
        for line in result.diff.to_string().lines() {
            page.line(line);
        }
    })?;
    context.note(&summary(result));
    Ok(())
}

/// Slots that moved, all services together.
pub(super) fn moved(result: &ApplyResult) -> u64 {
    result.moved_slots.iter().map(|service| u64::from(service.moved)).sum()
}

fn summary(result: &ApplyResult) -> String {
    if !result.changed && !result.dry_run {
        return format!("nothing to change, generation {}", result.generation);
    }
    if result.dry_run {
        let what = if result.diff.is_empty() { "nothing would change" } else { "nothing was done" };
        return format!("dry run: {what}; {} slots would move", moved(result));
    }
    let slots: Vec<String> = result
        .moved_slots
        .iter()
        .map(|service| format!("{}: {} of {} slots moved", service.service, service.moved, service.total))
        .collect();
    let slots = if slots.is_empty() { "no slot moved".to_owned() } else { slots.join(", ") };
    format!("generation {}; {slots}", result.generation)
}
