//! A run told as OpenLineage 2-0-2 run events, for catalogues such as Marquez or DataHub: an event when the run and each node begins, one when it ends. The run
//! is the parent of its nodes; a node's result is a dataset. Cases, patients and places of files are in none of them, but for what an error names.
//!
//! `send.rs` writes or posts what is said here. An event that cannot be delivered before the first node stops the run; a later one is told as a warning.

mod send;

use std::sync::Mutex;

use serde_json::{Map, Value, json};
use voxmill_schemas::artifact::ContentHash;

use self::send::Sink;
use crate::lineage::{iso, now_ms};
use crate::plan::Plan;
use crate::run::NodeEnd;
use crate::session::Fault;

const SPEC: &str = "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent";
const FACETS: &str = "https://openlineage.io/spec/facets";

/// After that many failures in a row nothing more is sent.
const PATIENCE: usize = 3;

/// Where the events of a run go.
pub struct Events {
    sink: Option<Mutex<State>>,
    namespace: String,
    pipeline: String,
    /// Of the lineage: what the ids of the events are made from.
    run: String,
}

struct State {
    sink: Sink,
    n_lost: usize,
    /// Of them, since the last that was delivered.
    n_in_row: usize,
    /// Of the first.
    why: String,
}

impl Events {
    /// Events that go nowhere.
    pub fn silent() -> Self {
        Self { sink: None, namespace: String::new(), pipeline: String::new(), run: String::new() }
    }

    /// Says that the run begins, so that a wrong place is known before any work.
    /// - `to`: a file, or `http://…`
    pub fn begin(to: &str, plan: &Plan, run: &str) -> Result<Self, Fault> {
        let namespace = std::env::var("OPENLINEAGE_NAMESPACE").ok().filter(|n| !n.is_empty()).unwrap_or_else(|| "voxmill".into());
        let mut sink = Sink::open(to).map_err(|why| Fault::Wrong(format!("--openlineage {to}: {why}")))?;
        let events = Self { sink: None, namespace, pipeline: plan.name.clone(), run: run.into() };
        let start = events.event("START", None, Map::new(), (json!([]), json!([])));
        sink.send(&start.to_string()).map_err(|why| Fault::Wrong(format!("--openlineage {to}: {why}")))?;
        Ok(Self { sink: Some(Mutex::new(State { sink, n_lost: 0, n_in_row: 0, why: String::new() })), ..events })
    }

    /// - `from`: names of the nodes that it takes from
    pub fn node_begins(&self, node: &str, from: &[&str]) {
        self.send(|| self.event("START", Some(node), Map::new(), (self.datasets(from), json!([]))));
    }

    pub fn node_ended(&self, end: &NodeEnd, from: &[&str], is_cancelled: bool) {
        self.send(|| {
            let mut facets = Map::new();
            let kind = match &end.failed {
                _ if is_cancelled => "ABORT",
                Some(why) => {
                    facets.insert("errorMessage".into(), error(why));
                    "FAIL"
                }
                None => "COMPLETE",
            };
            let outputs = if end.failed.is_some() || is_cancelled { json!([]) } else { json!([self.output(end)]) };
            self.event(kind, Some(&end.name), facets, (self.datasets(from), outputs))
        });
    }

    /// How the run ended, and what could not be delivered of it, in a sentence.
    pub fn finish(&self, exit_code: u8) -> Option<String> {
        let kind = match exit_code {
            0 | 3 => "COMPLETE",
            130 => "ABORT",
            _ => "FAIL",
        };
        self.send(|| self.event(kind, None, Map::new(), (json!([]), json!([]))));
        let state = self.sink.as_ref()?.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        (state.n_lost > 0).then(|| format!("{} OpenLineage events were not delivered; the first: {}", state.n_lost, state.why))
    }

    fn send(&self, event: impl FnOnce() -> Value) {
        let Some(sink) = &self.sink else { return };
        let event = event().to_string();
        let mut state = sink.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // A server that hangs must not hold up every node.
        let sent = if state.n_in_row < PATIENCE { state.sink.send(&event) } else { Err(String::new()) };
        match sent {
            Ok(()) => state.n_in_row = 0,
            Err(why) => {
                if state.n_lost == 0 {
                    state.why = why;
                }
                (state.n_lost, state.n_in_row) = (state.n_lost + 1, state.n_in_row + 1);
            }
        }
    }

    /// - `node`: `None` for the run itself
    fn event(&self, kind: &str, node: Option<&str>, mut facets: Map<String, Value>, (inputs, outputs): (Value, Value)) -> Value {
        let engine = json!({ "version": env!("CARGO_PKG_VERSION"), "name": "voxmill" });
        facets.insert("processing_engine".into(), facet("1-1-1/ProcessingEngineRunFacet.json#/$defs/ProcessingEngineRunFacet", engine));
        if node.is_some() {
            let parent = json!({ "run": { "runId": uuid(&self.run, "") }, "job": { "namespace": self.namespace, "name": self.pipeline } });
            facets.insert("parent".into(), facet("1-2-0/ParentRunFacet.json#/$defs/ParentRunFacet", parent));
        }
        let job_type =
            json!({ "processingType": "BATCH", "integration": "VOXMILL", "jobType": if node.is_some() { "TASK" } else { "DAG" } });
        let name = node.map_or_else(|| self.pipeline.clone(), |n| format!("{}.{n}", self.pipeline));
        json!({
            "eventType": kind,
            "eventTime": iso(now_ms()),
            "producer": producer(),
            "schemaURL": SPEC,
            "run": { "runId": uuid(&self.run, node.unwrap_or_default()), "facets": facets },
            "job": {
                "namespace": self.namespace,
                "name": name,
                "facets": { "jobType": facet("2-0-4/JobTypeJobFacet.json#/$defs/JobTypeJobFacet", job_type) },
            },
            "inputs": inputs,
            "outputs": outputs,
        })
    }

    fn datasets(&self, nodes: &[&str]) -> Value {
        nodes.iter().map(|n| json!({ "namespace": self.namespace, "name": format!("{}.{n}", self.pipeline) })).collect()
    }

    /// The result of a node: how many artifacts and bytes, and a version that changes with any bit of them.
    fn output(&self, end: &NodeEnd) -> Value {
        let contents: Vec<u8> = end.items.iter().flat_map(|i| i.manifest.content.0).collect();
        let version = json!({ "datasetVersion": ContentHash::of(&contents).hex() });
        let statistics = json!({
            "rowCount": end.items.len(),
            "size": end.items.iter().map(|i| i.manifest.bytes).sum::<u64>(),
            "fileCount": end.items.iter().map(|i| i.manifest.files.len()).sum::<usize>(),
        });
        json!({
            "namespace": self.namespace,
            "name": format!("{}.{}", self.pipeline, end.name),
            "facets": { "version": facet("1-0-1/DatasetVersionDatasetFacet.json#/$defs/DatasetVersionDatasetFacet", version) },
            "outputFacets": {
                "outputStatistics":
                    facet("1-0-2/OutputStatisticsOutputDatasetFacet.json#/$defs/OutputStatisticsOutputDatasetFacet", statistics),
            },
        })
    }
}

fn producer() -> String {
    format!("urn:voxmill:{}", env!("CARGO_PKG_VERSION"))
}

fn error(why: &str) -> Value {
    facet("1-0-1/ErrorMessageRunFacet.json#/$defs/ErrorMessageRunFacet", json!({ "message": why, "programmingLanguage": "RUST" }))
}

/// A facet with what every facet has.
fn facet(schema: &str, mut body: Value) -> Value {
    body["_producer"] = producer().into();
    body["_schemaURL"] = format!("{FACETS}/{schema}").into();
    body
}

/// The same for the same run and node: RFC 9562 version 8, whose bits are ours.
fn uuid(run: &str, node: &str) -> String {
    let mut b: [u8; 16] = [0; 16];
    b.copy_from_slice(&blake3::hash(format!("{run}/{node}").as_bytes()).as_bytes()[..16]);
    b[6] = (b[6] & 0x0f) | 0x80;
    b[8] = (b[8] & 0x3f) | 0x80;
    let hex: String = b.iter().map(|v| format!("{v:02x}")).collect();
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_uuids_that_stay() {
        let id = uuid("20260731T142501-3fa2b1", "iso");
        assert_eq!(id, uuid("20260731T142501-3fa2b1", "iso"));
        assert_ne!(id, uuid("20260731T142501-3fa2b1", ""));
        assert_eq!((id.len(), &id[14..15], id.matches('-').count()), (36, "8", 4));
    }

    #[test]
    fn a_failed_node_says_why_and_belongs_to_its_run() {
        let events = Events { namespace: "n".into(), pipeline: "p".into(), run: "r".into(), ..Events::silent() };
        let mut facets = Map::new();
        facets.insert("errorMessage".into(), error("no"));
        let e = events.event("FAIL", Some("iso"), facets, (events.datasets(&["image"]), json!([])));
        assert_eq!(e["job"]["name"], "p.iso");
        assert_eq!(e["run"]["facets"]["parent"]["run"]["runId"], uuid("r", ""));
        assert_eq!(e["run"]["facets"]["errorMessage"]["message"], "no");
        assert_eq!(e["inputs"][0]["name"], "p.image");
    }
}
