-- Rows for the matrix of rights (tests/sql/rls.rs): one function for what belongs to a client, one for what belongs to a person.
-- A new table needs a row here, in the function it belongs to; the test says so until it has one.
create schema rls_rows;

create function rls_rows.client(p_n integer, p_member uuid) returns uuid language plpgsql as $$
declare
  v_client uuid;
begin
  insert into public.clients (slug, brand) values ('client-' || p_n, 'Brand') returning id into v_client;
  insert into public.client_members (client_id, user_id, role) values (v_client, p_member, 'viewer');
  insert into public.client_numbers (client_id, channel, address) values (v_client, 'sms', '800' || p_n);
  insert into public.ai_agents (client_id, slug, display_name) values (v_client, 'agent-' || p_n, 'Agent');
  insert into public.services (client_id, name) values (v_client, 'Service ' || p_n);
  insert into public.client_budgets (client_id, currency, sms_segment_price, whatsapp_template_price) values (v_client, 'RWF', 1, 1);
  insert into public.budget_months (client_id, month, currency) values (v_client, '2030-01-01', 'RWF');
  insert into public.budget_changes (client_id, month, currency, amount) values (v_client, '2030-01-01', 'RWF', 1);
  insert into public.send_permits (delivery_id, client_id) values (gen_random_uuid(), v_client);
  insert into public.send_limits (prefix) values ('+1' || p_n);
  insert into public.message_templates (client_id, name, language) values (v_client, 'call_summary_v1', 'en');
  insert into public.channel_prices (client_id, provider, kind, price, currency) values (v_client, 'mtn', 'segment', 12, 'RWF');
  insert into public.number_ranges (prefix, country) values ('+1' || p_n, 'US');
  insert into public.fx_rates (base, quote, valid_from, rate) values ('USD', 'RWF', date '2030-01-01' + p_n, 1400);
  insert into public.agent_types (name) values ('type-' || p_n);
  update public.agent_deployments set agent_type_id = (select id from public.agent_types where name = 'type-' || p_n) where client_id = v_client;
  insert into public.sequences (client_id, name) values (v_client, 'Sequence ' || p_n);
  return v_client;
end
$$;

create function rls_rows.person(p_n integer, p_client uuid, p_user uuid) returns void language plpgsql as $$
declare
  v_profile uuid; v_call uuid; v_session uuid; v_thread uuid; v_turn uuid; v_message uuid; v_delivery uuid; v_notification uuid;
begin
  -- Somebody with an account has chosen something: in a view of sums that is a row of its own.
  insert into public.profiles (user_id, phone_number, notification_preferences)
  values (p_user, '+25078811111' || p_n, case when p_user is null then '{}' else '{"policy": "sms_only"}' end::jsonb) returning id into v_profile;
  insert into public.profile_identities (profile_id, kind, value) values (v_profile, 'phone', '+25078811111' || p_n);
  insert into public.voice_calls (client_id, profile_id, origin, provider_call_id) values (p_client, v_profile, 'mtn_sip', 'call-' || p_n)
  returning id into v_call;
  insert into public.transcripts (client_id, call_id, seq, role, text) values (p_client, v_call, 1, 'user', 'Hello');
  insert into public.call_summaries (client_id, call_id, headline) values (p_client, v_call, 'A call');
  insert into public.omnichannel_sessions (client_id, profile_id, primary_channel, call_id) values (p_client, v_profile, 'voice', v_call)
  returning id into v_session;
  insert into public.conversation_threads (client_id, session_id, profile_id, call_id) values (p_client, v_session, v_profile, v_call)
  returning id into v_thread;
  insert into public.conversation_turns (client_id, session_id, profile_id, kind, lease_token, lease_until, correlation_id)
  values (p_client, v_session, v_profile, 'conversation', gen_random_uuid(), now(), 'turn-' || p_n) returning id into v_turn;
  insert into public.conversation_messages (client_id, thread_id, session_id, profile_id, turn_id, direction, role, channel, content)
  values (p_client, v_thread, v_session, v_profile, v_turn, 'outbound', 'assistant', 'sms', 'Hello') returning id into v_message;
  insert into public.message_delivery_log (client_id, session_id, profile_id, call_id, message_id, channel, provider, provider_message_id)
  values (p_client, v_session, v_profile, v_call, v_message, 'sms', 'mtn', 'm-' || p_n) returning id into v_delivery;
  insert into public.message_delivery_attempts (delivery_id, attempt, provider, outcome) values (v_delivery, 1, 'mtn', 'accepted');
  insert into public.message_status_events (delivery_id, source, status, occurred_at, dedupe_key) values (v_delivery, 'own', 'sent', now(), 'e-' || p_n);
  insert into public.call_notifications (client_id, call_id, profile_id, session_id, lease_token, lease_until, correlation_id)
  values (p_client, v_call, v_profile, v_session, gen_random_uuid(), now(), 'notification-' || p_n) returning id into v_notification;
  insert into public.notification_requests (correlation_id, client_id, call_id, notification_id, status)
  values ('request-' || p_n, p_client, v_call, v_notification, 'working');
  insert into public.call_notification_resends (client_id, call_id, reason, requested_by, correlation_id, previous)
  values (p_client, v_call, 'asked for', 'postgres', 'resend-' || p_n, '{}');
  insert into public.mcp_tool_calls (client_id, session_id, turn_id, name, idempotency_key) values (p_client, v_session, v_turn, 'a_tool', 'tool-' || p_n);
  insert into public.agent_tool_tokens (client_id, session_id, token_hash, scopes, purpose, expires_at)
  values (p_client, v_session, encode(sha256(convert_to('token-' || p_n, 'UTF8')), 'hex'), '{messages}', 'a_purpose', now());
  insert into public.openai_sessions (client_id, call_id, model) values (p_client, v_call, 'a-model');
  insert into public.voice_events (client_id, call_id, seq, type, occurred_at) values (p_client, v_call, 1, 'an_event', now());
  insert into public.call_consents (client_id, call_id, profile_id, kind, state, method, occurred_at)
  values (p_client, v_call, v_profile, 'recording', 'given', 'dtmf', now());
  insert into public.wa_threads (client_id, profile_id, call_id) values (p_client, v_profile, v_call);
  insert into public.voice_memories (client_id, profile_id, call_id, key, value) values (p_client, v_profile, v_call, 'area', 'Kicukiro');
  insert into public.memory_extractions (session_id, client_id, profile_id) values (v_session, p_client, v_profile);
  insert into public.privacy_requests (client_id, profile_id, kind, channel) values (p_client, v_profile, 'export', 'sms');
  insert into public.kept_opt_outs (number_hash, channel) values (private.number_hash('+25078811111' || p_n), 'whatsapp');
  insert into public.prospects (client_id, profile_id, phone_number) values (p_client, v_profile, '+25078811111' || p_n);
  insert into public.agent_calls (client_id, deployment_id, phone_number)
  select p_client, d.id, '+25078811111' || p_n from public.agent_deployments d where d.client_id = p_client and d.is_default;
  insert into public.agent_sms (client_id, phone_number, message_content, provider_message_sid) values (p_client, '+25078811111' || p_n, 'Hello', 'SM' || p_n);
  insert into public.agent_sms_reports (client_id, provider, provider_message_sid, provider_status, occurred_at)
  values (p_client, 'twilio', 'SMX' || p_n, 'sent', now());
  insert into public.agent_sms_rollups (deployment_id, grain, starts_at, client_id, cost_currency, revenue_currency, messages)
  select d.id, 'month', date '2020-01-01' + p_n, p_client, '', '', 1 from public.agent_deployments d where d.client_id = p_client and d.is_default;
  insert into public.agent_sms_totals (grain, starts_at, agent_type_id, cost_currency, revenue_currency, messages)
  select 'month', date '2020-01-01' + p_n, t.id, '', '', 1 from public.agent_types t where t.name = 'louis';
  insert into public.places (name, kind) values ('place-' || p_n, 'neighbourhood');
  insert into public.service_requests (client_id, profile_id, session_id, kind) values (p_client, v_profile, v_session, 'housing');
  insert into public.transport_bookings (client_id, profile_id, session_id, pickup, destination) values (p_client, v_profile, v_session, 'Remera', 'Gisozi');
  insert into public.handoffs (client_id, profile_id, session_id, call_id, reason) values (p_client, v_profile, v_session, v_call, 'asked for');
  insert into public.realtime_prices (model, effective_from, audio_in, audio_cached, audio_out, text_in, text_cached, text_out)
  values ('model-' || p_n, now(), 1, 1, 1, 1, 1, 1);
  insert into public.transcription_prices (model, effective_from, per_second) values ('model-' || p_n, now(), 1);
  insert into public.voice_notes (client_id, message_key) values (p_client, 'note-' || p_n);
  insert into public.trunk_reports (trunk, relay, state, reported_at) values ('trunk_' || p_n, 'relay', 'active', now());
  insert into public.alerts (client_id, kind, severity, dedupe_key, message) values (p_client, 'a_kind', 'warning', 'alert-' || p_n, 'Look.');
  insert into public.jobs (queue, payload) values ('a-queue', to_jsonb(p_n));
  insert into public.dead_letters (client_id, queue, message_id) values (p_client, 'a-queue', 'letter-' || p_n);
  insert into public.dead_letter_actions (dead_letter_id, action, reason, requested_by)
  select id, 'drop', 'a reason', 'postgres' from public.dead_letters where message_id = 'letter-' || p_n;
  insert into public.provider_health (provider) values ('provider-' || p_n);
  insert into public.provider_outcomes (provider, outcome) values ('provider-' || p_n, 'accepted');
  insert into public.rate_limits (bucket, window_start, taken) values ('bucket:' || v_profile, now(), 1);
  insert into public.reconciliations (provider, kind, period_start, period_end) values ('carrier-' || p_n, 'list', now() - interval '1 day', now());
  insert into public.reconciled_messages (reconciliation_id, provider_message_key, provider_message_id, outcome)
  select id, 'message-' || p_n, 'message-' || p_n, 'unknown_here' from public.reconciliations where provider = 'carrier-' || p_n;
  insert into public.provider_statements (provider, month, messages) values ('carrier-' || p_n, '2026-10-01', 1);
  insert into public.erasures (profile_id, reason, counts) values (v_profile, 'a_reason', '{}');
end
$$;
