/* The lock of one stripe (shmpool/lock.py, StripeLock.run), for Spin: `python tools/model/check.py` checks it and its
 * broken variants.
 *
 * What is modelled. A step here is a system call or a store there, and anything may happen between two steps:
 *   tokens    the turnstile, a counting semaphore; it knows no owner
 *   holder    the byte lock, which the kernel frees, some time after its holder's death
 *   intent    the stripe's intent word; half says that of what an insert writes one thing is there and another is not
 * A process dies at any step: what it knew is gone, its token too, and the byte only once the kernel has reaped it. A
 * handler's exception strikes at any step of the `try`, which is then left through its `finally`. A stopped process is one that
 * takes no step for as long as others take any number of theirs. A timed wait may time out at any instant, also when a
 * token is there. The turnstile starts with any number of tokens from 0 to one for each process, as after a storm. The model
 * believes that the kernel's byte lock excludes, and that stores are seen in order.
 *
 * Two ways to run it:
 *   without ROUNDS   every process comes back for ever, dead ones are replaced, and deaths and strikes never end. The
 *                    state space is finite all the same, so what is shown holds for any number of them: mutual exclusion,
 *                    recovery before anything else, tokens bounded by the processes. (That all stop would not show: deaths go on.)
 *   with ROUNDS      every process comes ROUNDS times and at most DEATHS die (and STRIKES strike). Then `ends` holds
 *                    under weak fairness: everyone who is not dead gets in and out again, so no wake-up is lost for ever.
 * (Not shown, because it is not so: that nobody is overtaken for ever by others who never stop coming.)
 *
 * Variants are made by defining one of STEAL, TRUST_TOKEN, OWNER_STEAL, OWNER_WORD, NO_TAKEOVER, PINNED, NO_RECOVERY, CLEAR_FIRST,
 * which must be rejected, or POST_FIRST, POST_ALWAYS, which are as sound as the original: the order of unlocking and posting
 * does not matter, and posting only at 0 keeps the turnstile fair, which is not needed for its tokens to stay few.
 */

#define PROCESSES 3
#ifndef DEATHS
#define DEATHS 2
#endif
#ifndef STRIKES
#define STRIKES 1
#endif

#define NOBODY PROCESSES

byte tokens;
byte holder = NOBODY;
bool intent;
bool half;  /* of what an insert writes, the one thing is there and the other is not */

bool dead[PROCESSES];
bool gone[PROCESSES];  /* for good */
byte struck = NOBODY;
byte insider = NOBODY;  /* who is between lock and unlock: for the assertions alone */
byte ended;
#ifdef ROUNDS
byte deaths, strikes;
#endif

#if defined(OWNER_WORD) || defined(OWNER_STEAL)
#define OWNER
byte owner = NOBODY;  /* the word that stands in the byte lock's stead */
#endif

/* F_OFD_SETLKW: waits until the byte is free. */
inline lock_byte() {
#if defined(TRUST_TOKEN)
	skip  /* a token alone admits */
#elif defined(OWNER)
	owner = me  /* a store of its own, after the token was taken */
#else
	atomic { holder == NOBODY -> holder = me }
#endif
}

/* F_OFD_SETLK, or the kernel for one that has died; to unlock what one has not is no error. */
inline free_byte() {
	if
	:: holder == me -> holder = NOBODY
	:: else
	fi
}

/* The `while` of _wait. Whoever takes the byte over is admitted as if it had the token, which the dead one took along. */
inline wait() {
	do
	:: atomic { tokens > 0 -> tokens--; admitted = true }; lock_byte(); break
#if defined(STEAL)
	:: atomic { true -> holder = me; admitted = true }; break  /* whoever has it */
#elif defined(OWNER)
	:: atomic {  /* timed out; compare and swap, as good as such a word can be */
		if
		:: owner != NOBODY && dead[owner] -> owner = me; admitted = true; break
#ifdef OWNER_STEAL
		:: owner == NOBODY -> owner = me; admitted = true; break  /* its taker must have died before it wrote the word */
#endif
		:: else
		fi }
#elif !defined(NO_TAKEOVER)
	:: atomic {  /* timed out; F_OFD_SETLK does not wait */
		if
		:: holder == NOBODY -> holder = me; admitted = true; break
		:: else
		fi }
#endif
	od
}

/* `recover`, then an insert. The assertions are what the whole protocol is for. */
inline work() {
	d_step { assert(insider == NOBODY); insider = me };
#ifndef NO_RECOVERY
	if
#ifdef CLEAR_FIRST
	:: intent -> intent = false; half = false
#else
	:: intent -> half = false; intent = false
#endif
	:: else
	fi;
#endif
	d_step { assert(!intent && !half); intent = true };
	half = true;
	half = false;
	d_step { assert(intent); intent = false }
}

inline unlock() {
	d_step {
		if
		:: insider == me -> insider = NOBODY
		:: else
		fi;
#if defined(OWNER)
		if
		:: owner == me -> owner = NOBODY
		:: else
		fi
#else
		free_byte()
#endif
	}
}

inline post() {
	if
#ifdef POST_ALWAYS
	:: admitted -> tokens++  /* surplus tokens are never drained */
#else
	:: admitted && tokens == 0 -> tokens++  /* the value is read at one step and the token posted at another */
#endif
	:: else
	fi;
	assert(tokens <= PROCESSES)
}

/* Both `finally`s. */
inline give_back() {
#ifdef POST_FIRST
	post();
	unlock()
#else
	unlock();
	post()
#endif
}

proctype user(byte me) {
	bool admitted;
#ifdef ROUNDS
	byte left = ROUNDS;
#endif

again:
	{
		do
#ifdef ROUNDS
		:: left == 0 -> goto done
		:: left > 0 -> left--;
#else
		:: true ->
#endif
			{
				if
				:: atomic { tokens > 0 -> tokens--; admitted = true }; lock_byte()  /* acquire(0) stores what it takes */
				:: tokens == 0 -> wait()
				fi;
				work()
			} unless {
				atomic { struck == me -> struck = NOBODY }
			};
			give_back();
			admitted = false
		od
	} unless {
		atomic {
			dead[me] ->
#ifndef PINNED
			free_byte();  /* PINNED: a forked child's mapping, for example, keeps the description open */
#endif
			admitted = false;
#ifndef ROUNDS
			dead[me] = false;
			goto again  /* another process takes its place */
#endif
		}
	};
done:
	atomic { gone[me] = true; ended++ }
}

/* What befalls them. */
inline kill(i) {
	d_step {
#ifdef ROUNDS
		deaths < DEATHS && !dead[i] && !gone[i] -> deaths++;
#else
		!dead[i] ->
#endif
		dead[i] = true;
		if
		:: struck == i -> struck = NOBODY
		:: else
		fi;
		if
		:: insider == i -> insider = NOBODY
		:: else
		fi
	}
}

inline strike(i) {
	d_step {
#ifdef ROUNDS
		strikes < STRIKES && struck == NOBODY && !gone[i] -> strikes++;
#else
		struck == NOBODY ->
#endif
		struck = i
	}
}

init {
	byte i;
	atomic {
#if defined(OWNER) || defined(NO_TAKEOVER)
		i = 1;  /* these need no lost token to begin with */
#else
		select(i : 0 .. PROCESSES);
#endif
		tokens = i;
		for (i : 0 .. PROCESSES - 1) {
			run user(i)
		}
		i = 0
	};
	do
	:: kill(0)
	:: kill(1)
	:: kill(2)
	:: strike(0)
	:: strike(1)
	:: strike(2)
#ifdef ROUNDS
	:: break
#endif
	od
}

#ifdef ROUNDS
ltl ends { <> (ended == PROCESSES) }
#endif
