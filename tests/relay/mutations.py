"""Every check of every step, each taken out alone: what remains must be noticed.

A mutation is the file, a text that occurs in it, which of its occurrences is meant, and what stands there instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files

FOLDER = files("fedq.relay") / "lua"


@dataclass(frozen=True)
class Mutation:
    step: str
    text: str
    instead: str = ""
    occurrence: int = 0

    @property
    def name(self) -> str:
        which = f" #{self.occurrence + 1}" if self.occurrence else ""
        instead = f" -> {self.instead}" if self.instead else ""
        return f"{self.step}: {' '.join(self.text.split())}{which}{instead}"

    def place(self, source: str) -> tuple[int, int]:
        """Where it is in ``source``: from and to."""
        at = -1
        for _ in range(self.occurrence + 1):
            at = source.index(self.text, at + 1)
        return at, at + len(self.text)

    def apply(self, source: str) -> str:
        """``source`` without the check."""
        parts = source.split(self.text)
        at = self.occurrence + 1
        assert len(parts) > at, f"{self.step}.lua no longer contains {self.text!r} ({at} times)"
        return self.text.join(parts[:at]) + self.instead + self.text.join(parts[at:])


def source_of(step: str) -> str:
    return (FOLDER / f"{step}.lua").read_text()


def steps() -> list[str]:
    """Every file there is."""
    return sorted(entry.name[:-4] for entry in FOLDER.iterdir() if entry.name.endswith(".lua"))


def _expects() -> list[Mutation]:
    """Each look at the type of a key."""
    import re

    found = []
    for step in steps():
        if step != "_prelude":
            found += [Mutation(step, call) for call in re.findall(r"expect\([^()]*\)", source_of(step))]
    return found


def M(step: str, text: str, instead: str = "", occurrence: int = 0) -> Mutation:  # noqa: N802
    return Mutation(step, text, instead, occurrence)


MUTATIONS = [
    # -- shared ---
    M("_prelude", "if found ~= 'none' and found ~= kind then", "if false then"),
    M("_prelude", "found ~= 'none' and "),
    M("_prelude", "if manifest then", "if false then"),
    M("_prelude", "status == 'pending' or "),
    M("_prelude", " or status == 'running'"),
    M("_prelude", "if not manifest then return nil end", "if not manifest then manifest = '2|8' end"),
    M("_prelude", "if redis.call('EXISTS', prefix .. digest .. ':' .. i) == 0 then return nil end"),
    M("_prelude", "redis.call('PERSIST', prefix .. digest)\n"),
    M("_prelude", "redis.call('PERSIST', prefix .. digest .. ':' .. i)"),
    M("_prelude", "redis.call('PERSIST', prefix .. digest .. ':owners')"),
    M("_prelude", "redis.call('SREM', prefix .. digest .. ':owners', owner)"),
    M("_prelude", "left[1] == 'upload' and not left[2]", "false"),
    M("_prelude", " and not left[2]"),
    M("_prelude", "redis.call('PEXPIRE', key, 900000)"),
    M("_prelude", "redis.call('PEXPIRE', prefix .. digest .. ':' .. i, 900000)"),
    M("_prelude", "if left[1] then return false end"),
    M("_prelude", "redis.call('UNLINK', prefix .. digest .. ':' .. i)"),
    M("_prelude", "redis.call('UNLINK', prefix .. digest, prefix .. digest .. ':owners')"),
    M("_prelude", "if redis.call('EXISTS', alive_key) == 0 then return end"),
    M("_prelude", "if last[1] and fields(last[1][2])['kind'] == 'wake' then return end"),
    M("_prelude", "redis.call('ZREM', order, message)"),
    M("_prelude", "redis.call('XACK', inbox, group, entry)"),
    M("_prelude", "redis.call('XDEL', inbox, entry)"),
    M("_prelude", "if redis.call('XLEN', inbox) > 0 then wake(inbox, alive_key) end"),
    M("_prelude", "redis.call('XLEN', inbox) > 0", "true"),
    M("_prelude", "if not found[1] then return nil end", "if not found[1] then return {} end"),
    M("_prelude", "if f['id'] ~= message then return nil end"),
    M("_prelude", "if known then", "if false then"),
    M("_prelude", "if answer[1] then", "if true then answer[1] = answer[1] or '0-1' answer[2] = answer[2] or ''"),
    M("_prelude", "if disown(node .. 'obj:', d, message) then redis.call('SREM', node .. 'objs:' .. run_id, d) end"),
    M("_prelude", "redis.call('XDEL', node .. 'replies:' .. run_id, answer[1])"),
    M("_prelude", "redis.call('UNLINK', out)"),
    M("_prelude", "redis.call('HDEL', sent, message)"),
    M("_prelude", "redis.call('ZREM', deadlines, message)"),
    M("_prelude", "if next(checkpoints) then", "if false then"),
    M("_prelude", "checkpoints[split(value)[5]] = nil"),
    M("_prelude", "if next(checkpoints) then", "if false then", 1),
    M("_prelude", "if pair[1] == run_id .. ':' .. c then", "if true then"),
    M("_prelude", "disown(base .. 'obj:', pair[2], pair[1])"),
    M("_prelude", "redis.call('SREM', run_objs, member)"),
    # -- adopt ---
    M("adopt", "if ARGV[7] == '1' and not lives then return {'OVER', status} end"),
    M("adopt", "ARGV[7] == '1' and not lives", "not lives"),
    M("adopt", "if ARGV[2] ~= '' and redis.call('HGET', ARGV[1], 'token') ~= ARGV[2] then return {'FENCED'} end"),
    M("adopt", "ARGV[2] ~= '' and "),
    M("adopt", "redis.call('SADD', owners, owner)"),
    M("adopt", "redis.call('SADD', KEYS[1], ARGV[5] == '1' and (owner .. ' ' .. d) or d)"),
    M("adopt", "if ARGV[7] == '1' then", "if true then"),
    M("adopt", "elseif fresh then", "else"),
    M("adopt", "redis.call('PEXPIRE', owners, ttl)"),
    M("adopt", "if not complete(prefix, d) then", "if false then"),
    M("adopt", "if left > 0 and left < ttl then redis.call('PEXPIRE', key, ttl) end"),
    M("adopt", "left > 0 and left < ttl", "left < ttl"),
    M("adopt", "if left > 0 and left < ttl then redis.call('PEXPIRE', key, ttl) end", "", 1),
    M("adopt", "left > 0 and left < ttl", "left < ttl", 1),
    # -- answer ---
    M("answer", "if redis.call('EXISTS', out) == 1 then return {'ALREADY'} end"),
    M("answer", "if not alive(run_key) then return {'RUN_OVER'} end"),
    M("answer", "if ARGV[10] ~= '' and redis.call('HGET', run_key, 'token') ~= ARGV[10] then return {'FENCED'} end"),
    M("answer", "ARGV[10] ~= '' and "),
    M("answer", "if not f then return {'GONE'} end", "if not f then f = {deadline = '0', seq = '0'} end"),
    M("answer", "if reason == 'EXPIRED' and tonumber(f['deadline']) > now then return {'NOT_SO'} end"),
    M("answer", "reason == 'EXPIRED' and "),
    M("answer", "if reason == 'OFFLINE' and redis.call('EXISTS', ARGV[9]) == 1 then return {'NOT_SO'} end"),
    M("answer", "reason == 'OFFLINE' and "),
    M("answer", "if reason == 'EXHAUSTED' then", "if false then"),
    M("answer", "most == 0 or "),
    M("answer", "attempt < most or "),
    M("answer", " or (held and split(held)[2] ~= '')"),
    M("answer", " and split(held)[2] ~= ''"),
    M("answer", "redis.call('HDEL', claims, message)"),
    M("answer", "close(inbox, claims, order, ARGV[9], entry, message, ARGV[8])"),
    # -- beat ---
    M("beat", "holder and holder ~= ARGV[1] and ARGV[3] ~= '1' and holder ~= ARGV[4]", "false"),
    M("beat", "holder ~= ARGV[1] and "),
    M("beat", " and ARGV[3] ~= '1'"),
    M("beat", " and holder ~= ARGV[4]"),
    M("beat", "if ttl == 0 then return {'OK'} end"),
    M("beat", "if ttl > 0 then redis.call('SET', KEYS[1], ARGV[1], 'PX', ttl) end"),
    M("beat", "if ttl > 0 then", "if true then"),
    M("beat", "redis.call('DEL', KEYS[1])"),
    M("beat", ", 'PX', ttl"),
    M("beat", "if holder == ARGV[1] then", "if true then"),
    M("beat", "redis.call('PEXPIRE', KEYS[1], ttl)"),
    M("beat", "redis.call('SET', KEYS[2], '1', 'PX', ARGV[5])"),
    M("beat", "KEYS[2] and ttl > 0 and", "KEYS[2] and"),
    M("beat", "redis.call('PEXPIRE', KEYS[2], ARGV[5]) == 0", "redis.call('EXISTS', KEYS[2]) == 0"),
    M("beat", ", 'PX', ARGV[5]"),
    # -- infos ---
    M("infos", "tostring(redis.call('EXISTS', node .. 'alive'))", "'1'"),
    M("infos", " or ''"),
    M("infos", ".. ':'", ".. ':x'"),
    # -- enqueue ---
    M("enqueue", "if redis.call('EXISTS', KEYS[1]) == 1 then", "if false then"),
    M("enqueue", "redis.call('HGET', KEYS[1], 'enqueue_mark') == ARGV[3]", "true"),
    M("enqueue", "redis.call('SADD', ARGV[1], KEYS[2])"),
    M("enqueue", "redis.call('HSET', KEYS[1], unpack(ARGV, 4))"),
    M("enqueue", "redis.call('RPUSH', KEYS[2], ARGV[2])"),
    # -- checkpoint ---
    M("checkpoint", "if not lives then return {'STOPPED', status} end"),
    M("checkpoint", "if redis.call('HGET', run, 'token') ~= ARGV[2] then return {'FENCED'} end"),
    M("checkpoint", "if at ~= from then", "if false then"),
    M("checkpoint", "at == from + 1 and newest[1]", "newest[1]"),
    M("checkpoint", "f['token'] == ARGV[2] and "),
    M("checkpoint", " and f['data'] == ARGV[4]"),
    M("checkpoint", "return {'OK', at, tonumber(redis.call('HGET', run, 'rev')), 0}"),
    M("checkpoint", "if not chunks[d] then missing[#missing + 1] = d end", "chunks[d] = chunks[d] or 2"),
    M("checkpoint", "if #missing > 0 then", "if false then"),
    M("checkpoint", "redis.call('DEL', journal)"),
    M("checkpoint", "redis.call('SADD', ARGV[7] .. d .. ':owners', owner)"),
    M("checkpoint", "redis.call('SADD', run_objs, owner .. ' ' .. d)"),
    M("checkpoint", "persist(ARGV[7], d, chunks[d])"),
    M("checkpoint", "disown(ARGV[7], d, old_owner)"),
    M("checkpoint", "redis.call('SREM', run_objs, old_owner .. ' ' .. d)"),
    M("checkpoint", "redis.call('XDEL', ctx, e[1])"),
    M("checkpoint", ", 'tries', '1'"),
    M("checkpoint", "for i = #first, tonumber(ARGV[9]) + 1, -1 do first[i] = nil end"),
    M("checkpoint", "pcall(free_messages, ARGV[1], sent, deadlines, run_objs, ARGV[8], first)", "true"),
    M("checkpoint", "done and #first or 0", "#first"),
    M("checkpoint", "redis.call('HINCRBY', run, 'rev', 1)", "redis.call('HGET', run, 'rev')"),
    # -- claim ---
    M("claim", "if not lives then return {'STOPPED', status} end"),
    M("claim", "if not f then return {'GONE'} end", "if not f then f, flat = {deadline = '9e15'}, {} end"),
    M("claim", "if held then", "if false then"),
    M("claim", "if c[2] == token then", "if false then"),
    M("claim", "elseif c[2] ~= '' then", "else"),
    M("claim", "if left > 0 then return {'BUSY', text_ms(left)} end"),
    M("claim", "return {'LAPSED'}"),
    M("claim", "if not mine then", "if true then"),
    M("claim", "if tonumber(f['deadline']) <= now then return {'EXPIRED'} end"),
    M("claim", "if redis.call('ZRANGE', order, 0, 0)[1] ~= message then return {'NOT_YET'} end"),
    M("claim", "if most > 0 and attempt >= most then return {'EXHAUSTED', attempt} end"),
    M("claim", "most > 0 and "),
    M("claim", "attempt = attempt + 1"),
    M("claim", "redis.call('HDEL', claims, message)"),
    # -- claim_run ---
    M("claim_run", "if not lives then", "if false then"),
    M("claim_run", "if status == 'gone' then return {'GONE'} end"),
    M("claim_run", "if not again then", "if true then"),
    M("claim_run", "if holder and holder ~= '' and left > 0 then return {'BUSY', text_ms(left)} end"),
    M("claim_run", " and left > 0"),
    M("claim_run", "if most > 0 and tries >= most then return {'EXHAUSTED', tries} end"),
    M("claim_run", "most > 0 and "),
    M("claim_run", "redis.call('HDEL', run, 'lease', 'detail')"),
    M("claim_run", "redis.call('HINCRBY', run, 'attempt', 1)"),
    M("claim_run", "redis.call('HINCRBY', run, 'tries', 1)"),
    M("claim_run", "if status == 'pending' then", "if true then"),
    M("claim_run", "redis.call('HINCRBY', run, 'rev', 1)", "redis.call('HGET', run, 'rev')"),
    # -- clean_node ---
    M("clean_node", "if alive(KEYS[1]) then return {'ALIVE'} end"),
    M("clean_node", "redis.call('HDEL', KEYS[1], 'cleaned')"),
    M("clean_node", "redis.call('HSET', KEYS[1], 'cleaned', '1')"),
    M("clean_node", "redis.call('EXISTS', KEYS[1]) == 1", "true"),
    M("clean_node", "if #waiting > 0 then", "if false then"),
    M("clean_node", "if id and of_run[id] then", "if id then"),
    M("clean_node", "redis.call('XACK', inbox, ARGV[3], e[1])"),
    M("clean_node", "redis.call('XDEL', inbox, e[1])"),
    M("clean_node", "redis.call('HDEL', claims, m)"),
    M("clean_node", "redis.call('ZREM', order, m)"),
    M("clean_node", "wake(inbox, ARGV[4])"),
    M("clean_node", "if disown(ARGV[2] .. 'obj:', d, m) then redis.call('SREM', objs, d) end"),
    M("clean_node", "redis.call('UNLINK', ARGV[2] .. 'out:' .. m)\n  redis.call('XDEL'", "redis.call('XDEL'"),
    M("clean_node", "redis.call('XDEL', replies, e[1])"),
    M("clean_node", "if #answered == most then return {'MORE'} end"),
    M(
        "clean_node",
        "redis.call('XADD', KEYS[9], 'MAXLEN', '~', ARGV[6], '*', 'kind', 'log', 'data', fields(e[2])['data'])",
    ),
    M("clean_node", "redis.call('XDEL', KEYS[8], e[1])"),
    M("clean_node", "if #lines == most then return {'MORE'} end"),
    M("clean_node", "redis.call('UNLINK', KEYS[8])"),
    M("clean_node", "redis.call('UNLINK', ctx, replies, order)"),
    M("clean_node", " and (ctx_run or up_run) ~= ARGV[1]"),
    M("clean_node", "not of_another and "),
    M("clean_node", " and redis.call('EXISTS', ARGV[2] .. 'out:' .. owner) == 0"),
    M("clean_node", "disown(ARGV[2] .. 'obj:', d, owner)"),
    M("clean_node", "redis.call('UNLINK', objs)"),
    # -- clean_run ---
    M("clean_run", "if alive(KEYS[1]) then return {'ALIVE'} end"),
    M("clean_run", "redis.call('HDEL', KEYS[1], 'cleaned')"),
    M("clean_run", "redis.call('HSET', KEYS[1], 'cleaned', '1')"),
    M("clean_run", "redis.call('EXISTS', KEYS[1]) == 1", "true"),
    M("clean_run", "pair[1] ~= kept or "),
    M("clean_run", " or ARGV[4] == '1'"),
    M("clean_run", "if done == tonumber(ARGV[3]) then return {'MORE'} end"),
    M("clean_run", "disown(ARGV[2], pair[2], pair[1])"),
    M("clean_run", "redis.call('SREM', KEYS[2], member)"),
    M("clean_run", "redis.call('UNLINK', KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7])"),
    M("clean_run", "redis.call('SREM', KEYS[8], ARGV[1])"),
    M(
        "clean_run",
        "if redis.call('EXISTS', KEYS[1]) == 1 then "
        "redis.call('HDEL', KEYS[1], 'token', 'lease', 'event', 'owner') end",
    ),
    # -- commit ---
    M("commit", "if by == token then return {'COMMITTED'} end"),
    M("commit", "if by then", "if false then"),
    M("commit", "if not alive(run_key) then return {'STOPPED'} end"),
    M("commit", "if not f then return {'SUPERSEDED'} end", "if not f then f = {} end"),
    M("commit", "if not held then return {'SUPERSEDED'} end", "if not held then held = '1|' .. token .. '|0|' end"),
    M("commit", "if c[2] ~= token then return {'SUPERSEDED'} end"),
    M("commit", "if redis.call('ZRANGE', order, 0, 0)[1] ~= message then return {'SUPERSEDED'} end"),
    M("commit", "if not requested[d] then", "if true then"),
    M("commit", "if #missing > 0 then", "if false then"),
    M("commit", "if not chunks[d] then missing[#missing + 1] = d end", "chunks[d] = chunks[d] or 2"),
    M("commit", "if not chunks[d] then missing[#missing + 1] = d end", "chunks[d] = chunks[d] or 2", 1),
    M("commit", "redis.call('HDEL', claims, message)"),
    M("commit", "redis.call('SADD', prefix .. d .. ':owners', message)"),
    M("commit", "redis.call('SREM', prefix .. d .. ':owners', upload)"),
    M("commit", "redis.call('SADD', objs, d)"),
    M("commit", "persist(prefix, d, chunks[d])"),
    M("commit", "if ARGV[13] == '1' then", "if true then"),
    M("commit", "redis.call('SADD', prefix .. d .. ':owners', 'ctx:' .. ARGV[17] .. ':' .. version)"),
    M("commit", "redis.call('SREM', prefix .. d .. ':owners', upload)", "", 1),
    M("commit", "persist(prefix, d, chunks[d])", "", 1),
    M("commit", "if surplus > 0 then", "if false then"),
    M("commit", "local surplus = redis.call('XLEN', ctx) - tonumber(ARGV[16])", "local surplus = 1"),
    M("commit", "if disown(prefix, d, 'ctx:' .. ARGV[17] .. ':' .. old[1]) then redis.call('SREM', objs, d) end"),
    M("commit", "redis.call('XDEL', ctx, old[1])"),
    M("commit", "close(inbox, claims, order, ARGV[7], entry, message, ARGV[6])"),
    # -- event ---
    M("event", "if not lives then return {'OVER', status} end"),
    M("event", "if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return {'FENCED'} end"),
    M("event", "c < tonumber(last[1]) or "),
    M("event", "c == tonumber(last[1]) and "),
    M("event", " or (c == tonumber(last[1]) and n <= tonumber(last[2]))"),
    M("event", "tonumber(redis.call('HGET', KEYS[1], 'rev'))", "0"),
    M("event", "redis.call('HDEL', KEYS[1], 'event')"),
    M("event", "redis.call('HINCRBY', KEYS[1], 'rev', 1)", "redis.call('HGET', KEYS[1], 'rev')"),
    # -- finish ---
    M("finish", "if not lives then", "if false then"),
    M("finish", "if ARGV[2] ~= '' and redis.call('HGET', run, 'ended_by') == ARGV[2] then return {'OK'} end"),
    M("finish", "ARGV[2] ~= '' and redis.call('HGET', run, 'ended_by')", "redis.call('HGET', run, 'ended_by')"),
    M("finish", "if ARGV[2] ~= '' and redis.call('HGET', run, 'token') ~= ARGV[2] then return {'FENCED'} end"),
    M("finish", "ARGV[2] ~= '' and redis.call('HGET', run, 'token')", "redis.call('HGET', run, 'token')"),
    M("finish", "if not chunks[d] then missing[#missing + 1] = d end", "chunks[d] = chunks[d] or 2"),
    M("finish", "if #missing > 0 then", "if false then"),
    M("finish", "redis.call('HDEL', run, 'lease', 'detail')"),
    M("finish", "redis.call('SADD', ARGV[8] .. d .. ':owners', owner)"),
    M("finish", "redis.call('SADD', KEYS[4], owner .. ' ' .. d)"),
    M("finish", "persist(ARGV[8], d, chunks[d])"),
    # -- free ---
    M("free", "if ARGV[2] ~= '' and redis.call('HGET', run, 'token') ~= ARGV[2] then return {'FENCED'} end"),
    # -- journal, log, note ---
    M("journal", "if not lives then return {'OVER', status} end"),
    M("journal", "if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return {'FENCED'} end"),
    M("journal", "if at ~= ARGV[2] then return {'STALE', at} end"),
    M("journal", "redis.call('HDEL', KEYS[2], '')"),
    M("journal", "redis.call('HINCRBY', KEYS[1], 'rev', 1)", "redis.call('HGET', KEYS[1], 'rev')"),
    M("journal", "HSETNX", "HSET"),
    M("log", "if not alive(ARGV[1]) then return {'OVER'} end"),
    M("note", "if not lives then return {'OVER', status} end"),
    M("detail", "if not lives then return {'OVER', status} end"),
    M("note", "if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return {'FENCED'} end"),
    M("note", "if n > most then break end"),
    # -- push ---
    M("push", "if not lives then return {'STOPPED', status} end"),
    M("push", "if redis.call('HGET', run, 'token') ~= token then return {'FENCED'} end"),
    M("push", "if at ~= checkpoint then return {'STALE', at} end"),
    M("push", "if before[1] ~= '' and before[1] ~= request then return {'MISMATCH'} end"),
    M("push", "before[2] or "),
    M("push", "if redis.call('SISMEMBER', nodes, node) == 0 then unknown[#unknown + 1] = node end"),
    M("push", "if #unknown > 0 then", "if false then"),
    M("push", "if not chunks[d] then\n", "if false then\n"),
    M("push", "if not chunks[d] then missing[#missing + 1] = d end", "chunks[d] = chunks[d] or 2"),
    M("push", "if #missing > 0 then", "if false then"),
    M("push", "redis.call('HSET', journal, name, request .. '|' .. began)"),
    M("push", "redis.call('SADD', prefix .. d .. ':owners', owner)"),
    M("push", "redis.call('SADD', run_objs, owner .. ' ' .. d)"),
    M("push", "persist(prefix, d, n)"),
    M("push", "redis.call('HEXISTS', sent, id) == 0 and "),
    M("push", "redis.call('SADD', run_nodes, node)"),
    M("push", "redis.call('HINCRBY', run, 'rev', 1)", "redis.call('HGET', run, 'rev')"),
    # -- release, renew ---
    M("release", "if not held then return {'FREE'} end", "if not held then held = '0|' .. token .. '|0|' end"),
    M("release", "if c[2] == '' then return {'FREE'} end", "if c[2] == '' then c[2] = token end"),
    M("release", "if c[2] ~= token then return {'HELD'} end"),
    M("release", "if ARGV[4] == '1' and tonumber(c[3]) > now_ms() then return {'HELD'} end"),
    M("release", "ARGV[4] == '1' and "),
    M("release", "if ARGV[3] ~= '1' then attempt = math.max(0, attempt - 1) end"),
    M("release", "redis.call('HDEL', claims, message)"),
    M("release", "if ARGV[5] ~= '' then wake(ARGV[5], ARGV[6]) end"),
    M("renew", "if not alive(run_key) then return {'STOPPED'} end"),
    M("renew", "if not instruction(inbox, entry, message) then", "if false then"),
    M("renew", "if by == token then return {'COMMITTED'} end"),
    M("renew", "if not held then return {'UNCLAIMED'} end", "if not held then held = '1|' .. token .. '|0|' end"),
    M("renew", "if c[2] ~= token then", "if false then"),
    M("renew", "if c[2] == '' then return {'UNCLAIMED'} end"),
    M("renew", "redis.call('HDEL', claims, message)"),
    M("renew_run", "if not lives then return {'OVER', status} end"),
    M("renew_run", "if redis.call('HGET', run, 'token') ~= ARGV[1] then return {'FENCED'} end"),
    M("renew_run", "redis.call('HDEL', run, 'lease')"),
    M("renew_run", "if lease > 0 then", "if true then"),
    M("renew_run", "if ARGV[3] ~= '1' then", "if true then"),
    M("renew_run", "if ARGV[3] ~= '1' then", "if false then"),
    # -- resume_run ---
    M("resume_run", "if lives then", "if false then"),
    M("resume_run", "if redis.call('HGET', run, 'resumed_by') == ARGV[2] then return {'OK'} end"),
    M("resume_run", "redis.call('HGET', run, 'resumed_by') == ARGV[2]", "true"),
    M("resume_run", "if status ~= 'failed' then return {'OVER', status} end"),
    M("resume_run", "if redis.call('HEXISTS', run, 'cleaned') == 1 then return {'CLEANED'} end"),
    M("resume_run", ", 'token', 'lease', 'owner', 'detail'"),
    M("resume_run", ", 'tries', '0'"),
    # -- submit ---
    M("submit", "if known then", "if false then"),
    M(
        "submit",
        "if redis.call('SCARD', ARGV[3] .. d .. ':owners') > 1 then "
        "redis.call('SREM', ARGV[3] .. d .. ':owners', 'upload') end",
    ),
    M("submit", "if redis.call('SCARD', ARGV[3] .. d .. ':owners') > 1 then", "if true then"),
    M("submit", "if not chunks[d] then missing[#missing + 1] = d end", "chunks[d] = chunks[d] or 2"),
    M("submit", "if #missing > 0 then", "if false then"),
    M("submit", "redis.call('SADD', ARGV[3] .. d .. ':owners', run .. ':app')"),
    M(
        "submit",
        "redis.call('SREM', ARGV[3] .. d .. ':owners', 'upload')\n  redis.call('SADD', key",
        "redis.call('SADD', key",
    ),
    M("submit", "redis.call('SADD', key .. ':objs', run .. ':app ' .. d)"),
    M("submit", "persist(ARGV[3], d, n)"),
    *_expects(),
]
