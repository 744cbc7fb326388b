-- 20261121019010_newest_sms.sql
-- The newest SMS of a deployment by one look into one index, whoever asks, with whatever number of rows.
-- Safe to run again. Builds an index on agent_sms (on a large table first `migrate --indexes`) and takes the one it replaces away; reads a sample of
-- agent_sms for statistics. Undo: build idx_agent_sms_sent, drop idx_agent_sms_newest, reset statistics and n_distinct of the two columns, apply
-- private.my_client_ids of 20261121010100 and policy agent_types_select of 20261121013000, and drop private.my_agent_type_ids.

-- For whoever asks for the newest of all, or of a page, and names neither client nor deployment. With the id behind the time a page follows the
-- other without sorting; and the planner holds an index of two columns for less in the order of the table, so that it no longer walks this one
-- past the messages of everybody to find those of one deployment.
create index if not exists idx_agent_sms_newest on public.agent_sms (sent_at desc, id desc);
drop index if exists public.idx_agent_sms_sent;

-- Deployments and clients are asked about as often as they send, and a few send most. A plan for one of average size (it fetches all rows of a
-- month and sorts them) is bad for these; one for a large one is good for all of them. So each is held for one of twenty-five, whichever it is:
-- then the plan that a connection keeps for all of them (a generic one) is right for each, and seldom dearer than a new one.
alter table public.agent_sms alter column deployment_id set statistics 1, alter column deployment_id set (n_distinct = 25),
  alter column client_id set (n_distinct = 25);
analyze public.agent_sms (deployment_id, client_id, sent_at);

-- Policies ask this once for each table of a statement. In plpgsql its plan is made once a connection; a function in SQL makes it each time.
create or replace function private.my_client_ids() returns setof uuid
language plpgsql stable security definer set search_path = '' as $$
begin
  return query select m.client_id from public.client_members m where m.user_id = (select auth.uid());
end
$$;

create or replace function private.my_agent_type_ids() returns setof uuid
language plpgsql stable security definer set search_path = '' as $$
begin
  return query
  select distinct d.agent_type_id from public.agent_deployments d
   where d.client_id in (select private.my_client_ids()) and d.agent_type_id is not null;
end
$$;
comment on function private.my_agent_type_ids is
  'Kinds of the agents of the signed-in user''s clients. Security definer: the policies of agent_deployments need not be asked a second time, it goes by the same clients.';
revoke execute on function private.my_client_ids(), private.my_agent_type_ids() from public, anon, authenticated;
grant execute on function private.my_client_ids(), private.my_agent_type_ids() to authenticated, service_role;

drop policy if exists agent_types_select on public.agent_types;
create policy agent_types_select on public.agent_types for select to authenticated
  using (id = any (array(select private.my_agent_type_ids())));

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121019010'::text $$;

notify pgrst, 'reload schema';
