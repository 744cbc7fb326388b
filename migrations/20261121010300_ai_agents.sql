-- 20261121010300_ai_agents.sql
-- The agents that answer, with their instructions a locale.
-- Safe to run again (an edited row is kept). Locks only a new table. Undo: drop table public.ai_agents.
create table if not exists public.ai_agents (
  id uuid constraint ai_agents_pkey primary key default gen_random_uuid(),
  client_id uuid constraint ai_agents_client_id_fkey references public.clients (id) on delete cascade,
  slug text not null,
  display_name text not null,
  instructions jsonb not null default '{}',
  model text,
  tools jsonb not null default '[]',
  is_active boolean not null default true,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  constraint ai_agents_slug_is_lower_case check (slug ~ '^[a-z0-9][a-z0-9-]*$'),
  constraint ai_agents_instructions_is_object check (jsonb_typeof(instructions) = 'object'),
  constraint ai_agents_tools_is_array check (jsonb_typeof(tools) = 'array')
);
do $$
begin
  perform private.require_columns('public.ai_agents', '{
    "id": "uuid", "client_id": "uuid", "slug": "text", "display_name": "text", "instructions": "jsonb", "model": "text", "tools": "jsonb",
    "is_active": "boolean", "created_at": "timestamp with time zone", "updated_at": "timestamp with time zone"}');
end
$$;
create unique index if not exists ai_agents_slug_per_client on public.ai_agents (coalesce(client_id, '00000000-0000-0000-0000-000000000000'), slug);
create index if not exists idx_ai_agents_client on public.ai_agents (client_id);
comment on table public.ai_agents is 'Who answers: instructions a locale, model, tools. A client''s own row wins over the shared one (client_id null) of the same slug.';
comment on column public.ai_agents.instructions is 'Locale -> instructions ("en", "fr", "rw", "sw"); English serves a locale that is missing. {brand} becomes the client''s brand.';
comment on column public.ai_agents.model is 'Null: the configured default (OPENAI_TEXT_MODEL).';
comment on column public.ai_agents.tools is 'Names of the tools the agent may use.';
comment on column public.ai_agents.slug is 'Name in requests and logs.';

insert into public.ai_agents (slug, display_name, instructions, tools)
values ('call-center', 'Call center', jsonb_build_object(
  'en', 'You are the call-center assistant of {brand}. You carry on a conversation that may have begun as a phone call: use the call summary and the earlier messages, and never ask again for what the person has already said. Answer in the language the person writes, in plain words, in at most two short sentences. Do not invent prices, times or promises. If you cannot help, say that a colleague will call back.',
  'fr', 'Vous êtes l''assistant du centre d''appels de {brand}. Vous poursuivez une conversation qui a peut-être commencé par un appel : utilisez le résumé de l''appel et les messages précédents, et ne redemandez jamais ce que la personne a déjà dit. Répondez dans la langue de la personne, simplement, en deux phrases courtes au plus. N''inventez ni prix, ni horaires, ni promesses. Si vous ne pouvez pas aider, dites qu''un collègue rappellera.',
  'rw', 'Uri umufasha wa {brand} usubiza abakiriya. Ukomeza ikiganiro gishobora kuba cyaratangiriye kuri telefone: koresha incamake y''ikiganiro n''ubutumwa bwabanje, kandi ntukongere kubaza ibyo umuntu yamaze kuvuga. Subiza mu rurimi umuntu yanditsemo, mu magambo yoroshye, mu nteruro ebyiri ngufi gusa. Ntuhimbe ibiciro, amasaha cyangwa amasezerano. Niba udashobora gufasha, vuga ko mugenzi wawe azamuhamagara.',
  'sw', 'Wewe ni msaidizi wa kituo cha simu cha {brand}. Unaendeleza mazungumzo ambayo huenda yalianza kwa simu: tumia muhtasari wa simu na ujumbe uliotangulia, wala usiulize tena alichokwisha sema mtu. Jibu kwa lugha ya mtu huyo, kwa maneno rahisi, kwa sentensi mbili fupi zaidi. Usibuni bei, nyakati wala ahadi. Ukishindwa kusaidia, sema kwamba mwenzako atampigia simu.'),
  '["session_get_context", "session_update_status"]')
on conflict do nothing;

create or replace function private.agent_json(p_client_id uuid, p_last_agent_id uuid, p_slug text default 'call-center') returns jsonb
language plpgsql stable set search_path = '' as $$
begin
  return (
    select jsonb_build_object('id', a.id, 'slug', a.slug, 'model', a.model, 'tools', a.tools,
             'instructions', (select coalesce(jsonb_object_agg(i.key, replace(i.value, '{brand}', c.brand)), '{}') from jsonb_each_text(a.instructions) i))
      from public.ai_agents a join public.clients c on c.id = p_client_id
     where a.is_active and (a.client_id is null or a.client_id = p_client_id) and (a.id = p_last_agent_id or a.slug = p_slug)
     order by (a.id = p_last_agent_id) desc nulls last, a.client_id nulls last
     limit 1);
end
$$;
comment on function private.agent_json is 'The agent that last spoke in a session, else the one of the slug; the client''s own before the shared one.';

drop trigger if exists ai_agents_touch on public.ai_agents;
create trigger ai_agents_touch before update on public.ai_agents for each row execute function private.touch_updated_at();

alter table public.ai_agents enable row level security;
drop policy if exists ai_agents_select on public.ai_agents;
create policy ai_agents_select on public.ai_agents for select to authenticated
  using (client_id in (select private.my_client_ids()));
revoke all on public.ai_agents from public, anon, authenticated;
grant select on public.ai_agents to authenticated;
grant select, insert, update, delete on public.ai_agents to service_role;
revoke execute on function private.agent_json(uuid, uuid, text) from public, anon, authenticated;
grant execute on function private.agent_json(uuid, uuid, text) to service_role;
