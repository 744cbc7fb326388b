//! A response from its beginning to its end, in the order in which the service tells of it.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::super::super::check::Refusal;
use super::super::audio::Format;
use super::super::items::{Item, audio_tokens, text_tokens};
use super::super::mcp::{RemoteCall, server_of};
use super::super::response::{Open, Piece, Running};
use super::super::script::Act;
use super::{Out, Session, broken, id};
use crate::control::Fault;

impl Session {
    pub(super) fn respond(&mut self, now: Duration, wanted: &Value) {
        let met = (self.faults)("response.create");
        match met.fault {
            Some(Fault::CutBefore) => return self.end(Out::Cut),
            Some(Fault::TimeoutBefore) => return self.end(Out::Hang),
            _ => {}
        }
        let modalities = self.settings.get("output_modalities").cloned().unwrap_or_default();
        let mut running = Running::new(wanted, &modalities);
        let created = self.show(&running, "in_progress", &Value::Null, &Value::Null);
        self.tell("response.created", json!({ "response": created }));
        if let Some(fault) = met.fault.filter(|fault| !fault.accepted()) {
            let Refusal { code, message, .. } = broken(fault);
            let kind = if code == "rate_limit_exceeded" { "rate_limit_error" } else { "server_error" };
            let details = json!({"type": "failed", "error": {"type": kind, "code": code, "message": message}});
            self.limits(if kind == "rate_limit_error" { 0 } else { 999 });
            self.response = Some(running);
            return self.done("failed", &details);
        }
        self.limits(999);
        let mut first = now + self.rules.think;
        if met.is(Fault::Slow) {
            first += met.delay.unwrap_or(Duration::from_secs(2));
        }
        let (speech, calls) = match self.progress().act() {
            Act::Say(speech) => (Some(speech), Vec::new()),
            Act::Call { name, arguments, saying } => (saying, vec![(name, arguments)]),
            Act::SayIfTold { told, then, otherwise } => {
                let found = self.items.told().is_some_and(|output| output.contains(&told));
                (Some(if found { then } else { otherwise }), Vec::new())
            }
        };
        let format = Format::of(self.settings.pointer("/audio/output/format"));
        running.plan(speech, calls, format, self.rules, first);
        self.response = Some(running);
        match met.fault {
            Some(Fault::CutAfter) => self.end(Out::Cut),
            Some(Fault::TimeoutAfter) => self.end(Out::Hang),
            _ => {}
        }
    }

    pub(super) fn piece(&mut self, piece: Piece) {
        match piece {
            Piece::Open => self.open(),
            Piece::Words(words) => {
                let Some(response) = &mut self.response else { return };
                let written = response.written;
                response.made.text += text_tokens(words.len());
                if let Some(open) = &mut response.open {
                    open.text.push_str(&words);
                }
                let name =
                    if written { "response.output_text.delta" } else { "response.output_audio_transcript.delta" };
                self.tell_of_part(name, json!({ "delta": words }));
            }
            Piece::Sound(sound) => {
                self.spoke = true;
                let format = Format::of(self.settings.pointer("/audio/output/format"));
                let open = self.response.as_mut().and_then(|response| response.open.as_mut());
                if let Some(open) = open {
                    open.bytes += sound.len();
                    let ms = (open.bytes / format.bytes_a_ms()) as u64;
                    if let Some(item) = self.items.find(&open.id) {
                        item.audio_ms = ms;
                    }
                }
                self.tell_of_part("response.output_audio.delta", json!({ "delta": STANDARD.encode(sound) }));
            }
            Piece::Close => self.close("completed"),
            Piece::Call { name, arguments } => {
                let is_function =
                    self.settings.get("tools").and_then(Value::as_array).is_some_and(|tools| {
                        tools.iter().any(|tool| tool.get("name").is_some_and(|known| *known == name))
                    });
                match server_of(&self.settings, &name).filter(|_| !is_function).cloned() {
                    Some(server) => self.call_remote(&name, &arguments, server),
                    None => self.call(&name, &arguments),
                }
            }
            Piece::Done => self.done("completed", &Value::Null),
        }
    }

    pub(super) fn open(&mut self) {
        let Some(response) = &mut self.response else { return };
        let (item, written) = (id("item"), response.written);
        response.open = Some(Open { id: item.clone(), text: String::new(), bytes: 0 });
        let value = json!({"id": item, "object": "realtime.item", "type": "message", "status": "in_progress", "role": "assistant", "content": []});
        self.tell_of_output("response.output_item.added", &value);
        self.enters(Item { id: item, value, audio_ms: 0, of_model: true });
        let part =
            if written { json!({"type": "text", "text": ""}) } else { json!({"type": "audio", "transcript": ""}) };
        self.tell_of_part("response.content_part.added", json!({ "part": part }));
    }

    pub(super) fn close(&mut self, status: &str) {
        let Some(open) = self.response.as_ref().and_then(|response| response.open.as_ref()) else { return };
        let (item, text) = (open.id.clone(), open.text.clone());
        let written = self.response.as_ref().is_some_and(|response| response.written);
        let part = if written {
            self.tell_of_part("response.output_text.done", json!({ "text": text }));
            json!({"type": "text", "text": text})
        } else {
            self.tell_of_part("response.output_audio.done", json!({}));
            self.tell_of_part("response.output_audio_transcript.done", json!({ "transcript": text }));
            json!({"type": "audio", "transcript": text})
        };
        self.tell_of_part("response.content_part.done", json!({ "part": part }));
        let content = if written {
            json!({"type": "output_text", "text": text})
        } else {
            json!({"type": "output_audio", "transcript": text})
        };
        let value = json!({"id": item, "object": "realtime.item", "type": "message", "status": status, "role": "assistant", "content": [content]});
        let format = Format::of(self.settings.pointer("/audio/output/format"));
        if let Some(response) = &mut self.response
            && let Some(open) = response.open.take()
        {
            response.made.audio += audio_tokens((open.bytes / format.bytes_a_ms()) as u64, true);
        }
        self.whole(&item, value);
    }

    pub(super) fn call(&mut self, name: &str, arguments: &str) {
        let (item, call_id) = (id("item"), id("call"));
        let value = |status: &str, arguments: &str| {
            json!({"id": item, "object": "realtime.item", "type": "function_call", "status": status, "call_id": call_id,
                   "name": name, "arguments": arguments})
        };
        self.tell_of_output("response.output_item.added", &value("in_progress", ""));
        self.enters(Item { id: item.clone(), value: value("in_progress", ""), audio_ms: 0, of_model: true });
        let at = self.response.as_ref().map(|response| (response.id.clone(), response.output.len()));
        let of = |more: Value| {
            let (response, index) = at.clone().unwrap_or_default();
            let mut all =
                json!({ "response_id": response, "item_id": item, "output_index": index, "call_id": call_id });
            if let (Some(all), Value::Object(more)) = (all.as_object_mut(), more) {
                all.extend(more);
            }
            all
        };
        self.tell("response.function_call_arguments.delta", of(json!({ "delta": arguments })));
        self.tell("response.function_call_arguments.done", of(json!({ "arguments": arguments, "name": name })));
        if let Some(response) = &mut self.response {
            response.made.text += text_tokens(arguments.len() + name.len());
        }
        self.whole(&item, value("completed", arguments));
    }

    /// The service calls a remote tool by itself. Its answer is an item; the client has to ask for a response to it.
    fn call_remote(&mut self, name: &str, arguments: &str, server: Value) {
        let approved = server.get("require_approval").is_some_and(|approval| approval == "never");
        let kind = if approved { "mcp_call" } else { "mcp_approval_request" };
        let item = id(if approved { "mcp" } else { "mcpr" });
        let value = json!({"id": item, "object": "realtime.item", "type": kind, "server_label": server.get("server_label"),
                           "name": name, "arguments": arguments});
        self.tell_of_output("response.output_item.added", &value);
        self.enters(Item { id: item.clone(), value: value.clone(), audio_ms: 0, of_model: true });
        if !approved {
            return self.whole(&item, value);
        }
        let at = self.response.as_ref().map(|response| (response.id.clone(), response.output.len()));
        let (response, index) = at.unwrap_or_default();
        let of = json!({"response_id": response, "item_id": item, "output_index": index, "arguments": arguments});
        self.tell("response.mcp_call_arguments.done", of);
        self.tell("response.mcp_call.in_progress", json!({"item_id": item, "output_index": index}));
        self.out.push_back(Out::Remote(RemoteCall {
            item,
            name: name.to_owned(),
            arguments: arguments.to_owned(),
            server,
        }));
    }

    /// What came of a remote call.
    pub fn remote_done(&mut self, call: &RemoteCall, answer: Result<String, String>) {
        let (word, output, error) = match answer {
            Ok(output) => ("completed", Value::String(output), Value::Null),
            Err(error) => ("failed", Value::Null, json!({"type": "mcp_protocol_error", "code": 0, "message": error})),
        };
        let value = json!({"id": call.item, "object": "realtime.item", "type": "mcp_call", "server_label": call.server.get("server_label"),
                           "name": call.name, "arguments": call.arguments, "output": output, "error": error});
        self.tell(&format!("response.mcp_call.{word}"), json!({"item_id": call.item, "output_index": 0}));
        self.whole(&call.item, value);
    }

    /// An item of the model's enters the conversation, unfinished.
    pub(super) fn enters(&mut self, item: Item) {
        if self.response.as_ref().is_some_and(|response| response.aside) {
            return;
        }
        let value = item.value.clone();
        let before = self.items.add(item, None);
        self.tell("conversation.item.added", json!({ "item": value, "previous_item_id": before }));
    }

    /// An item of the model's is finished.
    pub(super) fn whole(&mut self, id: &str, value: Value) {
        self.tell_of_output("response.output_item.done", &value);
        if let Some(item) = self.items.find(id) {
            item.value = value.clone();
            self.tell("conversation.item.done", json!({ "item": value }));
        }
        if let Some(response) = &mut self.response {
            response.output.push(value);
        }
    }

    pub(super) fn cancel(&mut self, reason: &str) {
        if let Some(response) = &mut self.response {
            response.pieces.clear();
        }
        self.close("incomplete");
        self.done("cancelled", &json!({"type": "cancelled", "reason": reason}));
    }

    pub(super) fn done(&mut self, status: &str, details: &Value) {
        let Some(running) = self.response.take() else { return };
        let told = self.settings.get("instructions").and_then(Value::as_str).map_or(0, str::len);
        let tools = self.settings.get("tools").map_or(0, |tools| tools.to_string().len());
        let usage = if status == "failed" {
            json!({"total_tokens": 0, "input_tokens": 0, "output_tokens": 0})
        } else {
            self.items.usage(told + tools, running.made)
        };
        let shown = self.show(&running, status, details, &usage);
        self.tell("response.done", json!({ "response": shown }));
    }

    pub(super) fn show(&self, running: &Running, status: &str, details: &Value, usage: &Value) -> Value {
        let output = self.settings.pointer("/audio/output");
        json!({
            "object": "realtime.response", "id": running.id, "status": status, "status_details": details, "output": running.output,
            "conversation_id": if running.aside { Value::Null } else { self.conversation.as_str().into() },
            "output_modalities": if running.written { ["text"] } else { ["audio"] },
            "max_output_tokens": self.settings.get("max_output_tokens"), "audio": { "output": output },
            "usage": usage, "metadata": running.metadata,
        })
    }

    pub(super) fn limits(&mut self, remaining: u32) {
        let limit = |name: &str, limit: u32, remaining: u32| json!({"name": name, "limit": limit, "remaining": remaining, "reset_seconds": if remaining == 0 { 1.5 } else { 0.06 }});
        let limits = [limit("requests", 1000, remaining), limit("tokens", 800_000, 799_000 * u32::from(remaining > 0))];
        self.tell("rate_limits.updated", json!({ "rate_limits": limits }));
    }

    pub(super) fn tell_of_output(&mut self, name: &str, item: &Value) {
        let Some(response) = &self.response else { return };
        let event = json!({ "response_id": response.id, "output_index": response.output.len(), "item": item });
        self.tell(name, event);
    }

    pub(super) fn tell_of_part(&mut self, name: &str, more: Value) {
        let Some(response) = &self.response else { return };
        let item = response.open.as_ref().map(|open| open.id.clone());
        let mut event = json!({ "response_id": response.id, "item_id": item, "output_index": response.output.len(), "content_index": 0 });
        if let (Some(event), Value::Object(more)) = (event.as_object_mut(), more) {
            event.extend(more);
        }
        self.tell(name, event);
    }
}
