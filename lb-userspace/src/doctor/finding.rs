//! What an examination says: one finding for each thing that was looked at, with its cure where there is one to take.

use serde::Serialize;

/// How bad a finding is, from best to worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Worth knowing: it works, or it could not be seen.
    Note,
    /// It works now, but slowly, or not for all packets.
    Warning,
    /// It does not work.
    Problem,
}

impl Severity {
    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Problem => "problem",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at; a stable name such as `peer-program`.
    pub id: &'static str,
    /// Whose it is: `system`, `agent`, or an interface's name.
    pub subject: String,
    /// How bad it is.
    pub severity: Severity,
    /// What was found.
    pub finding: String,
    /// What to do about it, with a command in backquotes; absent where all is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cure: Option<String>,
}

/// Writes findings of one subject.
#[derive(Debug, Clone, Copy)]
pub(super) struct About<'a>(pub(super) &'a str);

impl About<'_> {
    pub(super) fn ok(self, id: &'static str, finding: impl Into<String>) -> Finding {
        Finding {
            id,
            subject: self.0.to_owned(),
            severity: Severity::Ok,
            finding: finding.into(),
            cure: None,
        }
    }

    pub(super) fn note(
        self,
        id: &'static str,
        finding: impl Into<String>,
        cure: impl Into<String>,
    ) -> Finding {
        self.bad(Severity::Note, id, finding, cure)
    }

    pub(super) fn warning(
        self,
        id: &'static str,
        finding: impl Into<String>,
        cure: impl Into<String>,
    ) -> Finding {
        self.bad(Severity::Warning, id, finding, cure)
    }

    pub(super) fn problem(
        self,
        id: &'static str,
        finding: impl Into<String>,
        cure: impl Into<String>,
    ) -> Finding {
        self.bad(Severity::Problem, id, finding, cure)
    }

    pub(super) fn bad(
        self,
        severity: Severity,
        id: &'static str,
        finding: impl Into<String>,
        cure: impl Into<String>,
    ) -> Finding {
        Finding { id, subject: self.0.to_owned(), severity, finding: finding.into(), cure: Some(cure.into()) }
    }
}

/// How many findings there are of each kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Number of findings that are as they should be.
    pub ok: usize,
    /// Number of notes.
    pub note: usize,
    /// Number of warnings.
    pub warning: usize,
    /// Number of problems.
    pub problem: usize,
}

impl Summary {
    /// Counts.
    pub fn of(findings: &[Finding]) -> Self {
        let count = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
        Self {
            ok: count(Severity::Ok),
            note: count(Severity::Note),
            warning: count(Severity::Warning),
            problem: count(Severity::Problem),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The finding of that name, which has to be there once, and to keep the rules: a cure with a command, or all well.
    pub(in crate::doctor) fn find<'a>(findings: &'a [Finding], id: &str) -> &'a Finding {
        let found: Vec<_> = findings.iter().filter(|finding| finding.id == id).collect();
        let [finding] = found[..] else { panic!("{} findings {id} in {findings:#?}", found.len()) };
        match &finding.cure {
            None => assert_eq!(finding.severity, Severity::Ok, "{finding:?}"),
            Some(cure) => {
                assert_ne!(finding.severity, Severity::Ok, "{finding:?}");
                assert!(cure.matches('`').count() >= 2, "no command in {finding:?}");
            }
        }
        finding
    }

    #[test]
    fn a_summary_counts_each_kind() {
        let about = About("x");
        let findings = [about.ok("a", "a"), about.problem("b", "b", "c"), about.problem("c", "b", "c")];
        assert_eq!(Summary::of(&findings), Summary { ok: 1, note: 0, warning: 0, problem: 2 });
    }
}
