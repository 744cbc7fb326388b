-- 20261121012011_policies_that_find_an_index.sql
-- Policies of signed-in users compare with arrays, so that an index is found where a whole table was read.
-- Safe to run again. Locks each table for a moment. Undo: apply the policies of before.

comment on function private.my_client_ids is
  'Clients of the signed-in user. Security definer: policies of client_members itself use it, and would else call themselves. '
  'Policies compare with array(select ...): evaluated once a statement, and an index is found by it even beside an or.';

drop policy if exists clients_select on public.clients;
create policy clients_select on public.clients for select to authenticated
  using (id = any (array(select private.my_client_ids())));
drop policy if exists client_members_select on public.client_members;
create policy client_members_select on public.client_members for select to authenticated
  using (user_id = (select auth.uid()) or client_id = any (array(select private.my_client_ids())));
drop policy if exists client_numbers_select on public.client_numbers;
create policy client_numbers_select on public.client_numbers for select to authenticated
  using (client_id = any (array(select private.my_client_ids())));
drop policy if exists profile_identities_select on public.profile_identities;
create policy profile_identities_select on public.profile_identities for select to authenticated
  using (profile_id = any (array(select private.my_profile_ids())));
drop policy if exists ai_agents_select on public.ai_agents;
create policy ai_agents_select on public.ai_agents for select to authenticated
  using (client_id = any (array(select private.my_client_ids())));
drop policy if exists voice_calls_select on public.voice_calls;
create policy voice_calls_select on public.voice_calls for select to authenticated
  using (profile_id = any (array(select private.my_profile_ids())) or client_id = any (array(select private.my_client_ids())));
drop policy if exists transcripts_select on public.transcripts;
create policy transcripts_select on public.transcripts for select to authenticated
  using (client_id = any (array(select private.my_client_ids()))
    or call_id = any (array(select c.id from public.voice_calls c where c.profile_id = any (array(select private.my_profile_ids())))));
drop policy if exists call_summaries_select on public.call_summaries;
create policy call_summaries_select on public.call_summaries for select to authenticated
  using (client_id = any (array(select private.my_client_ids()))
    or call_id = any (array(select c.id from public.voice_calls c where c.profile_id = any (array(select private.my_profile_ids())))));
drop policy if exists omnichannel_sessions_select on public.omnichannel_sessions;
create policy omnichannel_sessions_select on public.omnichannel_sessions for select to authenticated
  using (profile_id = any (array(select private.my_profile_ids())) or client_id = any (array(select private.my_client_ids())));
drop policy if exists conversation_threads_select on public.conversation_threads;
create policy conversation_threads_select on public.conversation_threads for select to authenticated
  using (profile_id = any (array(select private.my_profile_ids())) or client_id = any (array(select private.my_client_ids())));
drop policy if exists profiles_select on public.profiles;
create policy profiles_select on public.profiles for select to authenticated
  using (user_id = (select auth.uid())
    -- Whoever is no member, as most are, is spared the look at every person's sessions.
    or (exists (select private.my_client_ids())
      and exists (select from public.omnichannel_sessions s
                   where s.profile_id = profiles.id and s.client_id = any (array(select private.my_client_ids())))));
drop policy if exists conversation_messages_select on public.conversation_messages;
create policy conversation_messages_select on public.conversation_messages for select to authenticated
  using (profile_id = any (array(select private.my_profile_ids())) or client_id = any (array(select private.my_client_ids())));
drop policy if exists message_delivery_log_select on public.message_delivery_log;
create policy message_delivery_log_select on public.message_delivery_log for select to authenticated
  using (profile_id = any (array(select private.my_profile_ids())) or client_id = any (array(select private.my_client_ids())));
drop policy if exists alerts_select on public.alerts;
create policy alerts_select on public.alerts for select to authenticated
  using (client_id = any (array(select private.my_client_ids())));
drop policy if exists mcp_tool_calls_select on public.mcp_tool_calls;
create policy mcp_tool_calls_select on public.mcp_tool_calls for select to authenticated
  using (client_id = any (array(select private.my_client_ids())));
