//! Tools that a response wants: they begin when it is whole, and their results go back together.

use std::time::Duration;

use serde_json::json;

use super::super::{Link, Output};
use super::{Realtime, created};
use crate::moment::Moment;

/// A tool that takes longer is spoken over.
const FILLER_AFTER: Duration = Duration::from_millis(800);
/// A tool that takes longer is answered for.
const TOOL_WITHIN: Duration = Duration::from_secs(8);
/// Uses of tools in one response.
const MOST_TOOLS: usize = 16;

#[derive(Debug)]
pub(super) struct Tool {
    pub(super) call_id: String,
    /// The response that wants it; any, if that is not known.
    pub(super) response: Option<String>,
    /// Since when it runs: not before its response is complete.
    pub(super) begun: Option<Moment>,
    pub(super) name: String,
    pub(super) arguments: String,
    pub(super) output: Option<String>,
}

impl Tool {
    pub(super) fn is_of(&self, response: &str) -> bool {
        self.response.as_deref().is_none_or(|id| id == response)
    }

    fn is_awaited(&self, call_id: &str) -> bool {
        self.call_id == call_id && self.begun.is_some() && self.output.is_none()
    }
}

impl Realtime {
    /// Starts what a complete response wants done, also while tools of an earlier one still run.
    pub(super) fn begin_tools(&mut self, now: Moment, response: &str) {
        if self.oldest_tool().is_none() {
            self.filler_told = false;
        }
        for tool in self.tools.iter_mut().filter(|tool| tool.begun.is_none() && tool.is_of(response)) {
            tool.begun = Some(now);
            self.out.push_back(Output::ToolCall {
                call_id: tool.call_id.clone(),
                name: tool.name.clone(),
                arguments: tool.arguments.clone(),
            });
        }
    }

    /// When the oldest of those that run began.
    fn oldest_tool(&self) -> Option<Moment> {
        self.tools.iter().filter(|tool| tool.output.is_none()).filter_map(|tool| tool.begun).min()
    }

    pub(super) fn tool_result(&mut self, now: Moment, call_id: &str, output: String) {
        // A second answer, or one after the deadline, changes nothing.
        if let Some(tool) = self.tools.iter_mut().find(|tool| tool.is_awaited(call_id)) {
            tool.output = Some(output);
        }
        if let Some(link) = self.ready() {
            self.return_tools(now, link);
        }
    }

    /// All results of what runs go back together, and are followed by one request for a response.
    pub(super) fn return_tools(&mut self, now: Moment, link: Link) {
        let (begun, others): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.tools).into_iter().partition(|tool| tool.begun.is_some());
        if begun.is_empty() || begun.iter().any(|tool| tool.output.is_none()) {
            self.tools = begun.into_iter().chain(others).collect();
            return;
        }
        self.tools = others;
        for tool in begun {
            let item = json!({ "type": "function_call_output", "call_id": tool.call_id, "output": tool.output });
            self.out.push_back(Output::Send(link, created(&item)));
        }
        self.ask(now, json!({}));
    }

    /// A tool that takes long is spoken over, and in the end answered for.
    pub(super) fn tools_take_long(&mut self, now: Moment) {
        let Some(since) = self.oldest_tool() else { return };
        if now >= since + FILLER_AFTER && !std::mem::replace(&mut self.filler_told, true) {
            self.out.push_back(Output::Filler);
        }
        if now >= since + TOOL_WITHIN {
            let is_late = |begun: Moment| now >= begun + TOOL_WITHIN;
            for tool in self.tools.iter_mut().filter(|tool| tool.output.is_none() && tool.begun.is_some_and(is_late)) {
                tool.output = Some(
                    r#"{"status":"pending","detail":"it takes longer; the result will be sent by message"}"#.into(),
                );
            }
            if let Some(link) = self.ready() {
                self.return_tools(now, link);
            }
        }
    }

    /// When that is due.
    pub(super) fn next_of_tools(&self) -> Option<Moment> {
        self.oldest_tool().map(|begun| begun + if self.filler_told { TOOL_WITHIN } else { FILLER_AFTER })
    }

    /// A response wants something done; it begins when the response is complete.
    pub(super) fn wants_tool(&mut self, response: String, call_id: String, name: String, arguments: String) {
        let known = self.tools.iter().any(|tool| tool.call_id == call_id);
        if !known && self.tools.len() < MOST_TOOLS {
            let response = Some(response).filter(|id| !id.is_empty()).or_else(|| self.response.clone());
            self.tools.push(Tool { call_id, response, begun: None, name, arguments, output: None });
        }
    }
}
