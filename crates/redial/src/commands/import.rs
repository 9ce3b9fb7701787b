//! `redial runs import`: records the runs of a file, many in one transaction.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use contracts::{BODY_DEPTH, FieldError, Json, Loc, OrgId, PayloadFormat, RunId, RunUpdate};
use egress::Policy;
use indicatif::{ProgressBar, ProgressStyle};
use store::{AcceptPolicy, DatabaseUrl, Deliver, RecordedRun, Store, StoreError, record_run};
use tokio::task::JoinSet;

use crate::commands::require_organization;
use crate::settings::Settings;

/// Lines per transaction; fewer if they are long, to bound memory.
const CHUNK: usize = 1_000;
const CHUNK_BYTES: usize = 8 << 20;
/// Concurrent transactions on PostgreSQL, where most of the time is spent waiting for it. All lines of a run
/// are in the same lane, which preserves their order. SQLite has one writer.
const LANES: usize = 4;
/// Request id in the logs of the automatic deliveries.
const REQUEST_ID: &str = "runs-import";

/// A parsed line, with its number.
#[derive(Clone)]
struct Line {
    number: usize,
    id: RunId,
    update: RunUpdate,
}

/// Result of a line, by its number: whether the run was new, or why it could not be recorded.
type Outcome = (usize, Result<bool, String>);

#[derive(Default)]
struct Counts {
    created: usize,
    known: usize,
    bad: usize,
}

/// Imports the runs of a file.
pub(super) async fn import(
    settings: &Settings,
    file: PathBuf,
    org: OrgId,
    deliver: bool,
) -> anyhow::Result<()> {
    let url = settings.database_url()?;
    let lanes = if matches!(url, DatabaseUrl::Sqlite(_)) { 1 } else { LANES };
    let store = Store::open(&url, lanes as u32).await?;
    store.read(move |tx| require_organization(tx, org)).await?;
    let deliver = if deliver { Deliver::Automatically } else { Deliver::Never };
    let recorder = Recorder { store, org, deliver, accept: settings.accept_policy() };
    let max_line = settings.api.max_body;
    let importer = Importer { recorder, lanes, egress: settings.egress_policy(), max_line };
    let progress = progress_bar(&file)?;
    let input: Box<dyn Read> = match file.to_str() {
        Some("-") => Box::new(io::stdin().lock()),
        _ => Box::new(File::open(&file).with_context(|| format!("cannot read {}", file.display()))?),
    };
    let counts = importer.import(BufReader::new(input), &progress).await?;
    progress.finish_and_clear();
    let Counts { created, known, bad } = counts;
    writeln!(io::stdout(), "{created} created, {known} known, {bad} bad")?;
    ensure!(bad == 0, "{bad} line(s) could not be recorded");
    Ok(())
}

struct Importer {
    recorder: Recorder,
    lanes: usize,
    egress: Policy,
    /// Maximum line length in bytes: that of a request body.
    max_line: usize,
}

impl Importer {
    async fn import(&self, mut input: impl BufRead, progress: &ProgressBar) -> anyhow::Result<Counts> {
        let mut counts = Counts::default();
        let (mut chunk, mut chunk_bytes) = (Vec::new(), 0);
        for number in 1.. {
            let (text, read) =
                self.next_line(&mut input).with_context(|| format!("cannot read line {number}"))?;
            progress.inc(read as u64);
            if !text.trim_ascii().is_empty() {
                match self.parse(&text) {
                    Ok((id, update)) => chunk.push(Line { number, id, update }),
                    Err(reason) => report(progress, &mut counts, number, &reason),
                }
            }
            chunk_bytes += text.len();
            if chunk.len() == CHUNK || chunk_bytes >= CHUNK_BYTES || read == 0 {
                self.record(std::mem::take(&mut chunk), progress, &mut counts).await?;
                chunk_bytes = 0;
            }
            if read == 0 {
                break;
            }
        }
        Ok(counts)
    }

    /// Returns the next line and the bytes of input it took; both are empty at the end. Of a line that is too
    /// long, only one byte more than the maximum is kept.
    fn next_line(&self, input: &mut impl BufRead) -> io::Result<(Vec<u8>, usize)> {
        let mut text = Vec::new();
        let mut read = input.by_ref().take(self.max_line as u64 + 1).read_until(b'\n', &mut text)?;
        if text.last() == Some(&b'\n') {
            text.pop();
        } else if text.len() > self.max_line {
            read += input.skip_until(b'\n')?;
        }
        Ok((text, read))
    }

    /// Parses a line by the rules of `PUT /v1/runs/{run_id}`.
    fn parse(&self, line: &[u8]) -> Result<(RunId, RunUpdate), String> {
        if line.len() > self.max_line {
            return Err(format!("longer than api.max_body, {} bytes", self.max_line));
        }
        let json = Json::parse(line, BODY_DEPTH).map_err(|error| error.to_string())?;
        let Json::Object(mut run) = json else { return Err("expected a JSON object".into()) };
        let id = run.shift_remove("id").ok_or("id is missing")?;
        let id = id.as_str().and_then(|id| id.parse().ok()).ok_or("id is not a UUID")?;
        let body = Json::Object(run).to_text(PayloadFormat::Compact);
        let update = api::parse_run(body.as_bytes(), &self.egress).map_err(|errors| sentence(&errors))?;
        Ok((id, update))
    }

    async fn record(
        &self,
        chunk: Vec<Line>,
        progress: &ProgressBar,
        counts: &mut Counts,
    ) -> anyhow::Result<()> {
        let mut lanes = vec![Vec::new(); self.lanes];
        for line in chunk {
            let lane = line.id.0.as_u128() % self.lanes as u128;
            lanes[lane as usize].push(line);
        }
        let mut recording = JoinSet::new();
        for lane in lanes {
            recording.spawn(self.recorder.clone().record(lane));
        }
        let mut outcomes = Vec::new();
        while let Some(recorded) = recording.join_next().await {
            outcomes.extend(recorded??);
        }
        outcomes.sort_by_key(|(number, _)| *number);
        for (number, outcome) in outcomes {
            match outcome {
                Ok(true) => counts.created += 1,
                Ok(false) => counts.known += 1,
                Err(reason) => report(progress, counts, number, &reason),
            }
        }
        Ok(())
    }
}

/// Records lines in the database.
#[derive(Clone)]
struct Recorder {
    store: Store,
    org: OrgId,
    deliver: Deliver,
    accept: AcceptPolicy,
}

impl Recorder {
    /// Records lines in one transaction. If that fails, because of a line or of concurrent writers, records
    /// each line on its own. An outage that lasts longer ends the import.
    async fn record(self, lines: Vec<Line>) -> anyhow::Result<Vec<Outcome>> {
        if let Ok(outcomes) = self.write(lines.clone()).await {
            return Ok(outcomes);
        }
        let mut outcomes = Vec::with_capacity(lines.len());
        for line in lines {
            let number = line.number;
            match self.write(vec![line]).await {
                Ok(outcome) => outcomes.extend(outcome),
                Err(error) if error.may_pass() => {
                    let advice =
                        format!("line {number} could not be recorded; importing all of it again is harmless");
                    return Err(anyhow::Error::new(error).context(advice));
                }
                Err(error) => outcomes.push((number, Err(error.to_string()))),
            }
        }
        Ok(outcomes)
    }

    async fn write(&self, lines: Vec<Line>) -> Result<Vec<Outcome>, StoreError> {
        let (org, deliver, accept) = (self.org, self.deliver, self.accept);
        let recorded = self.store.write(move |tx, now| {
            let record = |line: Line| {
                let run = (org, line.id);
                let recorded = record_run(tx, now, &accept, deliver, run, &line.update, &REQUEST_ID.into())?;
                let outcome = match recorded {
                    RecordedRun::Created(..) => Ok(true),
                    RecordedRun::Updated(..) => Ok(false),
                    RecordedRun::StatusConflict(status) => {
                        Err(format!("the run has ended as {status}, which never changes"))
                    }
                    RecordedRun::Erased => Err("the run's data has been erased".to_owned()),
                };
                Ok((line.number, outcome))
            };
            lines.into_iter().map(record).collect()
        });
        recorded.await
    }
}

fn report(progress: &ProgressBar, counts: &mut Counts, number: usize, reason: &str) {
    counts.bad += 1;
    progress.suspend(|| {
        // A line whose error can't be printed is still counted.
        let _ = writeln!(io::stderr(), "line {number}: {reason}");
    });
}

fn sentence(errors: &[FieldError]) -> String {
    let place = |error: &FieldError| {
        let steps = error.loc.iter().skip(1).map(|step| match step {
            Loc::Key(key) => key.clone(),
            Loc::Index(index) => index.to_string(),
        });
        steps.collect::<Vec<_>>().join(".")
    };
    errors.iter().map(|error| format!("{}: {}", place(error), error.msg)).collect::<Vec<_>>().join("; ")
}

/// Returns a progress bar, which is visible only on a terminal.
fn progress_bar(file: &Path) -> anyhow::Result<ProgressBar> {
    let size = std::fs::metadata(file).ok().filter(std::fs::Metadata::is_file).map(|file| file.len());
    if file.is_dir() {
        bail!("{} is a directory", file.display());
    }
    let style = ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {elapsed}")?;
    Ok(ProgressBar::new(size.unwrap_or(0)).with_style(style))
}
