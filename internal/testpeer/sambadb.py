"""Makes the database of a Samba domain controller, LAB.TEST, with what tests need in it.

Usage: python3 samba.py DIRECTORY CONTACTS. Needs no root: the ACLs of sysvol, which does, are left out.
"""

import logging
import os
import sys

import ldb
import samba.param
from samba.auth import system_session
from samba.dcerpc import security
from samba.dsdb import DS_DOMAIN_FUNCTION_2008_R2
from samba.ndr import ndr_pack, ndr_unpack
from samba.provision import provision

ADMIN_PASSWORD = "Passw0rd!x"
MEMBER = "bf9679c0-0de6-11d0-a285-00aa003049e2"  # schemaIDGUID of the attribute member


def make_database(root):
    conf = os.path.join(root, "smb.conf")
    with open(conf, "w") as f:
        f.write("[global]\n")
    lp = samba.param.LoadParm()
    lp.load(conf)
    log = logging.getLogger("provision")
    log.setLevel(logging.ERROR)
    result = provision(
        log, system_session(), smbconf=conf, targetdir=root, realm="LAB.TEST", domain="LAB",
        hostname="dc1", hostip="127.0.0.1", adminpass=ADMIN_PASSWORD, serverrole="dc",
        dns_backend="NONE", skip_sysvolacl=True, dom_for_fun_level=DS_DOMAIN_FUNCTION_2008_R2, lp=lp)
    return result.samdb


def relax_passwords(db, base):
    """A database is kept for weeks, and passwords must not expire in it."""
    m = ldb.Message(ldb.Dn(db, base))
    for name, value in (("maxPwdAge", "0"), ("minPwdAge", "0"), ("pwdProperties", "0"), ("minPwdLength", "0"),
                        ("lockoutThreshold", "0")):
        m[name] = ldb.MessageElement(value, ldb.FLAG_MOD_REPLACE, name)
    db.modify(m)


def add_user(db, dn, name, password):
    db.add({
        "dn": dn, "objectClass": "user", "sAMAccountName": name, "userPrincipalName": name + "@lab.test",
        "userAccountControl": "512", "unicodePwd": ('"%s"' % password).encode("utf-16-le")})


def let_write_members(db, ou, user):
    """The service account may write the members of groups below ou, and nothing else."""
    sid = ndr_unpack(security.dom_sid, db.search(user, ldb.SCOPE_BASE, attrs=["objectSid"])[0]["objectSid"][0])
    flags = ["sd_flags:1:%d" % security.SECINFO_DACL]
    old = db.search(ou, ldb.SCOPE_BASE, attrs=["nTSecurityDescriptor"], controls=flags)[0]["nTSecurityDescriptor"][0]
    sddl = ndr_unpack(security.descriptor, old).as_sddl(security.dom_sid(db.get_domain_sid()))
    sddl = sddl.replace("(", "(OA;CI;RPWP;%s;;%s)(" % (MEMBER, sid), 1)
    new = ndr_pack(security.descriptor.from_sddl(sddl, security.dom_sid(db.get_domain_sid())))
    m = ldb.Message(ldb.Dn(db, ou))
    m["nTSecurityDescriptor"] = ldb.MessageElement(new, ldb.FLAG_MOD_REPLACE, "nTSecurityDescriptor")
    db.modify(m, controls=flags)


def seed(db, contacts):
    base = db.domain_dn()
    relax_passwords(db, base)
    for ou in ("people", "groups", "contacts"):
        db.add({"dn": "OU=%s,%s" % (ou, base), "objectClass": "organizationalUnit"})
    svc = "CN=svc,CN=Users," + base
    add_user(db, svc, "svc", "svcpw")
    for i in range(1, 21):
        add_user(db, "CN=u%d,OU=people,%s" % (i, base), "u%d" % i, "userpw")
    let_write_members(db, "OU=groups," + base, svc)
    db.transaction_start()
    for i in range(1, contacts + 1):
        db.add({"dn": "CN=c%d,OU=contacts,%s" % (i, base), "objectClass": "contact"})
    db.transaction_commit()


os.umask(0o077)
seed(make_database(os.path.abspath(sys.argv[1])), int(sys.argv[2]))
